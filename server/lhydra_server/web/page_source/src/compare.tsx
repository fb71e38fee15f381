// Two bundles side by side for one listener, differences marked.
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";
import type { RecommendResponse } from "#api";
import { link, NOBODY, place, requestOf, withRequest } from "./address";
import { type Loaded, useAnswer } from "./hooks";
import { Who } from "./listener";
import { Failure } from "./parts";
import { about, call, show } from "./server";
import { Tracks } from "./tracks";
import { percent, shortBundle, TIERS } from "./words";

export function Compare(): JSX.Element {
  const request = { ...requestOf(place.value.params), explain: false };
  const user = request.userId === NOBODY ? "" : (request.userId ?? "");
  const there = about.value.compared;
  const key = JSON.stringify(request);
  const current = useAnswer(key, (signal) => call("Recommend", request, { signal }));
  const other = useAnswer(there ? key : "", (signal) => call("Recommend", request, { compared: true, signal }));
  useEffect(() => {
    if (current.value) show(current.value, current.tookMs);
  }, [current.value]);
  const here = placesOf(current.value);
  const elsewhere = placesOf(other.value);
  const both = [...here.keys()].filter((id) => elsewhere.has(id));
  const same = both.filter((id) => here.get(id) === elsewhere.get(id));
  return (
    <div class="compare">
      <section class="panel side" aria-label="Listener">
        <Who user={user} />
        {other.value && current.value ? (
          <p class="note">
            <b>{both.length}</b> of {here.size} tracks are in both lists, <b>{same.length}</b> at the same place.
          </p>
        ) : null}
        <p class="note">
          <a href={link("listen", withRequest({ ...request, explain: true }))}>Filters and rules</a> of Listen in hold here too.
        </p>
      </section>
      <One heading="Current" answer={current} before={there ? elsewhere : undefined} />
      {there ? (
        <One heading="Compared" answer={other} before={here} />
      ) : (
        <section class="panel" aria-label="Compared">
          <h2>No second bundle</h2>
          <p class="note">To put another bundle of the same store beside this one, start the gateway with it:</p>
          <pre>
            <code>lhydra web STORE --compare previous</code>
          </pre>
          <p class="note">or with the id of a bundle; Operations lists them.</p>
        </section>
      )}
    </div>
  );
}

function placesOf(answer: RecommendResponse | null): Map<string, number> {
  return new Map((answer?.tracks ?? []).map((one, index) => [one.trackId ?? "", index + 1]));
}

function One(props: {
  heading: string;
  answer: Loaded<RecommendResponse>;
  before: Map<string, number> | undefined;
}): JSX.Element {
  const { value, problem } = props.answer;
  return (
    <section class="panel list" aria-label={props.heading}>
      <header>
        <h2>{props.heading}</h2>
        <span class="summary" title={value?.bundleId}>
          {value ? `${shortBundle(value.bundleId)} · ${TIERS[value.tier ?? "TIER_UNSPECIFIED"][0]}` : ""}
        </span>
      </header>
      <Failure problem={problem} />
      {value?.degraded?.length ? <p class="degraded-note">{value.degraded.join(" · ")}</p> : null}
      <Tracks
        answer={value}
        subject={props.heading}
        stale={problem !== null}
        before={props.before?.size ? props.before : undefined}
        score={(one) => (
          <>
            {percent(one.score)}
            <small> %</small>
          </>
        )}
      />
    </section>
  );
}
