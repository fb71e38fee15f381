// How the last answer was made, always in sight.
import type { JSX } from "preact";
import { useState } from "preact/hooks";
import type { Stage } from "#api";
import { answered, status } from "./server";
import { ms, shortBundle, TIERS } from "./words";

export function StatusBar(): JSX.Element {
  const answer = answered.value;
  const [open, setOpen] = useState(false);
  const [tier, meaning] = TIERS[answer?.tier ?? "TIER_UNSPECIFIED"];
  const stages = answer?.stages ?? [];
  const total = stages.reduce((sum, one) => sum + (one.tookUs ?? 0), 0);
  const bundle = answer?.bundleId || status.value?.bundleId;
  return (
    <footer class="status" aria-label="How the last answer was made" onKeyDown={(event) => event.key === "Escape" && setOpen(false)}>
      {answer ? (
        <span class={`tier ${tier}`} title={meaning}>
          {tier}
        </span>
      ) : null}
      <span class="bundle" title={bundle}>
        <span class="dim">bundle</span> {shortBundle(bundle) || "–"}
      </span>
      {answer?.degraded.length ? (
        <span class="degraded" dir="auto" title={answer.degraded.join("\n")}>
          {answer.degraded.join(" · ")}
        </span>
      ) : answer ? (
        <span class="whole">whole</span>
      ) : null}
      {answer ? (
        <button type="button" class="stages" aria-expanded={open} onClick={() => setOpen(!open)}>
          <Bar stages={stages} total={total} />
          <span>
            <b>{ms(total)}</b> ms<span class="dim in-page"> · {Math.round(answer.tookMs)} ms in the page</span>
          </span>
        </button>
      ) : null}
      {answer && open ? (
        <div class="stage-table">
          <table>
            <caption>Where the time of the request went</caption>
            <tbody>
              {stages.map((one, index) => (
                <tr key={one.name}>
                  <th scope="row">
                    <i class={`dot s${index}`} />
                    {one.name}
                  </th>
                  <td>{ms(one.tookUs)} ms</td>
                </tr>
              ))}
            </tbody>
          </table>
          <p class="id">
            request <code>{answer.requestId}</code>
          </p>
        </div>
      ) : null}
    </footer>
  );
}

function Bar({ stages, total }: { stages: Stage[]; total: number }): JSX.Element {
  let x = 0;
  return (
    <svg class="stage-bar" viewBox="0 0 100 8" preserveAspectRatio="none" aria-hidden="true">
      {stages.map((one, index) => {
        const width = total ? ((one.tookUs ?? 0) / total) * 100 : 0;
        const from = x;
        x += width;
        return <rect key={one.name} class={`s${index}`} x={from} width={width} height="8" />;
      })}
    </svg>
  );
}
