// Why, or why not: one track's path through the stages, and what would bring it in.
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type { ExplainResponse, Pull, RecommendRequest } from "#api";
import { change, link, NOBODY } from "./address";
import { useAnswer } from "./hooks";
import { setRequest } from "./listen";
import { Failure, Icon, IconButton } from "./parts";
import { call } from "./server";
import { count, decimal, percent, plain, signed } from "./words";

const STAGES = ["catalogue", "exclude", "retrieve", "rerank", "select"] as const;

export function Why(props: { request: RecommendRequest; trackId: string; recorded: number }): JSX.Element {
  const { request, trackId } = props;
  const { explain: _reasons, ...asked } = request;
  const key = JSON.stringify([asked, trackId, props.recorded]);
  const found = useAnswer(key, (signal) => call("Explain", { trackId, request: asked }, { signal }));
  const heading = useRef<HTMLHeadingElement>(null);
  useEffect(() => heading.current?.focus({ preventScroll: false }), []);
  const told = found.value;
  const close = () => change({ why: "" });
  return (
    <aside
      class="panel why"
      aria-label="Why, or why not"
      onKeyDown={(event) => {
        if (event.key === "Escape") close();
      }}
    >
      <header>
        <div>
          <h2 tabIndex={-1} ref={heading} dir="auto">
            {told?.title || trackId}
          </h2>
          <p class="artist" dir="auto">
            {told?.artist ? `${told.artist} · ${trackId}` : ""}
          </p>
        </div>
        <IconButton icon="close" label="Close" onClick={close} />
      </header>
      <Failure problem={found.problem} />
      {told ? (
        <div class={found.busy ? "busy" : ""}>
          <p class={told.recommended ? "verdict in" : "verdict out"}>
            {told.recommended ? `Place ${told.rank} of ${told.k}` : `Not in the list: ${stopped(told)}`}
          </p>
          <p class="note">
            <a href={link("similar", { seed: trackId, ...(request.userId === NOBODY ? {} : { user: request.userId ?? "" }) })}>Similar tracks</a>
          </p>
          {told.reasons?.length ? (
            <p class="note" dir="auto">
              {told.reasons.join(" · ")}
            </p>
          ) : null}
          <Path told={told} />
          <Pulls heading="Plays that pull" pulls={told.pulls ?? []} />
          <Pulls heading="Groups of features" pulls={told.groups ?? []} />
          <BringIn told={told} request={request} />
        </div>
      ) : found.busy ? (
        <p class="note">Asking…</p>
      ) : null}
    </aside>
  );
}

function stopped(told: ExplainResponse): string {
  const by = told.stoppedBy ?? "";
  const words: Record<string, string> = {
    unknown: "the bundle does not hold this track",
    removed: "the track was removed from the catalogue",
    heard: "the listener has heard it",
    exclude_track_ids: "it is excluded",
    depth: `too far away for a depth of ${count(told.depth)}`,
    index: "the index missed it",
    score: "others score higher",
  };
  return words[by] ?? (told.stoppedAt === "exclude" ? `kept out by ${plain(by)}` : `by the rule ${by}`);
}

type State = "passed" | "stopped" | "unreached";

function Path({ told }: { told: ExplainResponse }): JSX.Element {
  const end = told.recommended ? STAGES.length : STAGES.indexOf((told.stoppedAt || "catalogue") as (typeof STAGES)[number]);
  const state = (stage: (typeof STAGES)[number]): State => {
    const at = STAGES.indexOf(stage);
    return at < end ? "passed" : at === end ? "stopped" : "unreached";
  };
  const eligible: State = end > 1 ? "passed" : "stopped";
  const popular = told.tier === "TIER_POPULAR";
  return (
    <ol class="path" aria-label="Path through the stages">
      <Step state={eligible} name="Eligible">
        {eligible === "passed" ? "nothing keeps it out" : (told.droppedBy ?? []).map(plain).join(", ") || stopped(told)}
      </Step>
      <Step state={state("retrieve")} name={popular ? "On the chart" : "Retrieved"}>
        {told.exactRank ? (
          <>
            <Figure name={eligible === "passed" ? "by cosine" : "by cosine, were it eligible"} value={told.exactRank} />
            {eligible === "passed" ? <Figure name="by the index" value={told.indexRank} none="beyond 10,000" /> : null}
            <Ruler rank={told.indexRank || told.exactRank} cut={told.depth ?? 0} cutName="depth" />
          </>
        ) : null}
        {told.sources?.length ? <span class="by">through {told.sources.join(", ")}</span> : null}
        {told.candidate || told.recommended ? null : end > 1 ? <span class="by">no candidate of {count(told.candidates)}</span> : null}
      </Step>
      <Step state={state("rerank")} name="Scored by the head">
        {told.headRank && told.candidates ? (
          <>
            <Figure name={`${told.candidate ? "of" : "were it among the"} ${count(told.candidates)} candidates`} value={told.headRank} />
            <Ruler rank={told.headRank} cut={told.k ?? 0} cutName="list" />
          </>
        ) : null}
        {told.score ? (
          <span class="by">
            {percent(told.score)} % · logit {decimal(told.logit, 2)}
          </span>
        ) : null}
      </Step>
      {(told.steps ?? []).map((step) => (
        <Step key={step.rule} state={step.after ? "passed" : "stopped"} name={step.rule === "places" ? "Places pinned, new or drawn" : `Rule: ${step.rule}`}>
          <span class="by">
            {step.before ? `place ${count(step.before)}` : "no place"} → {step.after ? `place ${count(step.after)}` : "no place"}
          </span>
        </Step>
      ))}
      <Step state={told.recommended ? "passed" : state("select")} name="List">
        {told.recommended ? (
          <Figure name={`of ${count(told.k)}`} value={told.rank} />
        ) : (
          <span class="by">not among the {count(told.k)}</span>
        )}
      </Step>
    </ol>
  );
}

function Step(props: { state: State; name: string; children: ComponentChildren }): JSX.Element {
  const icon = props.state === "passed" ? "check" : props.state === "stopped" ? "close" : "minus";
  return (
    <li class={`step ${props.state}`}>
      <span class="mark">
        <Icon name={icon} />
        <span class="unseen">{props.state === "unreached" ? "not reached" : props.state}</span>
      </span>
      <div>
        <h3>{props.name}</h3>
        <div class="body">{props.children}</div>
      </div>
    </li>
  );
}

function Figure(props: { name: string; value: number | undefined; none?: string }): JSX.Element {
  return (
    <span class="figure">
      {props.value ? (
        <>
          <b>{count(props.value)}</b> {props.name}
        </>
      ) : (
        `${props.none ?? "no place"} ${props.name}`
      )}
    </span>
  );
}

// Where a rank lies and where the cut is, on a scale of powers of ten.
function Ruler({ rank, cut, cutName }: { rank: number; cut: number; cutName: string }): JSX.Element | null {
  if (!rank || !cut) return null;
  const top = 10 ** Math.max(2, Math.ceil(Math.log10(Math.max(rank, cut))));
  const at = (value: number) => 4 + (Math.log10(Math.max(1, value)) / Math.log10(top)) * 292;
  const ticks = Array.from({ length: Math.log10(top) + 1 }, (_, power) => 10 ** power);
  return (
    <svg class={`ruler ${rank <= cut ? "inside" : "outside"}`} viewBox="0 0 300 34" role="img" aria-label={`rank ${rank}, ${cutName} ${cut}`}>
      <rect class="open" x="4" y="9" width={at(cut) - 4} height="6" rx="3" />
      <line class="axis" x1="4" x2="296" y1="12" y2="12" />
      {ticks.map((tick) => (
        <text key={tick} class="tick" x={at(tick)} y="31" text-anchor={tick === 1 ? "start" : tick === top ? "end" : "middle"}>
          {count(tick)}
        </text>
      ))}
      <line class="cut" x1={at(cut)} x2={at(cut)} y1="4" y2="20" />
      <circle class="rank" cx={at(rank)} cy="12" r="4.5" />
    </svg>
  );
}

function Pulls({ heading, pulls }: { heading: string; pulls: Pull[] }): JSX.Element | null {
  if (!pulls.length) return null;
  const most = Math.max(...pulls.map((one) => Math.abs(one.logit ?? 0)), 1e-9);
  return (
    <section class="pulls">
      <h3>
        {heading} <span class="tag">logit</span>
      </h3>
      <ul>
        {pulls.map((one) => {
          const share = Math.abs(one.logit ?? 0) / most;
          return (
            <li key={one.name}>
              <span class="label" dir="auto">
                {one.title ? (
                  <>
                    {one.title} <small dir="auto">{one.artist}</small>
                  </>
                ) : (
                  one.name
                )}
              </span>
              <span class={`bar ${(one.logit ?? 0) < 0 ? "against" : "for"}`}>
                <span style={{ width: `${(share * 50).toFixed(1)}%` }} />
              </span>
              <span class="number">{signed(one.logit)}</span>
            </li>
          );
        })}
      </ul>
    </section>
  );
}

function BringIn({ told, request }: { told: ExplainResponse; request: RecommendRequest }): JSX.Element | null {
  if (told.recommended) return null;
  const ways = told.wouldBringIn ?? [];
  return (
    <section class="bring-in">
      <h3>What would bring it in</h3>
      {ways.length === 0 ? <p class="note">Nothing that was tried. That does not prove that nothing helps.</p> : null}
      <ul>
        {ways.map((way) => (
          <li key={JSON.stringify(way.changes)}>
            <span dir="auto">
              {(way.changes ?? []).join(", ")}: place {way.place}
            </span>
            <button
              type="button"
              onClick={() => {
                // The draws stay the ones that are shown, and the clock is now.
                setRequest({ ...way.request, explain: request.explain, seed: request.seed });
              }}
            >
              Apply
            </button>
          </li>
        ))}
      </ul>
    </section>
  );
}
