// Listen in: one listener, what they played, and the list as it moves.
import type { JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import type { RecommendRequest, RecommendResponse, ScoredTrack } from "#api";
import { change, NOBODY, place, requestOf, withRequest } from "./address";
import { useAnswer, useTracks } from "./hooks";
import { Listener } from "./listener";
import { Empty, Failure, IconButton, Name, TrackSearch } from "./parts";
import { about, call, notice, Problem, show } from "./server";
import { Shape } from "./shape";
import { Why } from "./why";
import { percent } from "./words";

export function setRequest(request: RecommendRequest): void {
  change(withRequest(request));
}

export function idsOf(request: RecommendRequest): string[] {
  const session = (request.session?.entries ?? []).map((entry) => entry.trackId ?? "");
  const history = (request.history?.entries ?? []).map((entry) => entry.trackId ?? "");
  return [...session, ...history, ...(request.excludeTrackIds ?? [])];
}

export function Listen(): JSX.Element {
  const params = place.value.params;
  const request = requestOf(params);
  const why = params.get("why") ?? "";
  const known = request.userId !== NOBODY;
  const [recorded, setRecorded] = useState(0);
  const [failed, setFailed] = useState<Problem | null>(null);
  const track = useTracks(idsOf(request));
  const nameOf = (id: string) => track(id).title || id;
  const answer = useAnswer(JSON.stringify([request, recorded]), (signal) => call("Recommend", request, { signal }));
  useEffect(() => {
    if (answer.value) show(answer.value, answer.tookMs);
  }, [answer.value]);
  const records = known && about.value.plays;

  const hear = async (one: ScoredTrack, skipped: boolean) => {
    setFailed(null);
    if (!records) {
      const entries = [...(request.session?.entries ?? []), { trackId: one.trackId, ...(skipped ? { skipped } : {}) }];
      setRequest({ ...request, session: { entries: entries.slice(-256) } });
      return;
    }
    const play = {
      eventId: crypto.randomUUID?.() ?? String(Math.random()).slice(2),
      userId: request.userId,
      trackId: one.trackId,
      requestId: answer.value?.requestId,
      ...(skipped ? { skipped } : { completed: true }),
    };
    try {
      await call("RecordPlays", { plays: [play] });
      notice.value = `${skipped ? "Skip" : "Play"} recorded: ${one.title || one.trackId}`;
      setRecorded((before) => before + 1);
    } catch (error) {
      if (error instanceof Problem) setFailed(error);
    }
  };
  const exclude = (one: ScoredTrack) =>
    setRequest({ ...request, excludeTrackIds: [...(request.excludeTrackIds ?? []), one.trackId ?? ""] });

  return (
    <div class={`listen ${why ? "explaining" : ""}`}>
      <Listener request={request} records={records} track={track} recorded={recorded} />
      <section class="panel list" aria-label="List">
        <header>
          <h2>{known ? "Recommended" : "Recommended for a new listener"}</h2>
          <Summary answer={answer.value} busy={answer.busy} />
        </header>
        <Failure problem={failed ?? answer.problem} />
        <Moving
          answer={answer.value}
          listener={request.userId ?? ""}
          why={why}
          stale={answer.problem !== null}
          onPlay={(one) => void hear(one, false)}
          onSkip={(one) => void hear(one, true)}
          onExclude={exclude}
        />
        <div class="ask-why">
          <TrackSearch label="Why is a track not here?" placeholder="Search any track" onPick={(id) => change({ why: id })} />
        </div>
      </section>
      <section class="panel controls" aria-label="Shape the list">
        <details open={window.innerWidth >= 760}>
          <summary>
            <h2>Shape the list</h2>
          </summary>
          <Shape request={request} onChange={setRequest} nameOf={nameOf} />
        </details>
      </section>
      {why ? <Why key={why} request={request} trackId={why} recorded={recorded} /> : null}
    </div>
  );
}

function Summary(props: { answer: RecommendResponse | null; busy: boolean }): JSX.Element {
  const applied = props.answer?.rulesApplied ?? [];
  return (
    <p class={`summary ${props.busy ? "busy" : ""}`} aria-live="polite">
      {props.answer ? `${props.answer.tracks?.length ?? 0} tracks` : props.busy ? "Asking…" : ""}
      {applied.map((one) => (
        <span key={one.rule} class={one.gaveWay ? "applied gave-way" : "applied"}>
          {one.rule}
          {one.moved ? ` moved ${one.moved}` : ""}
          {one.gaveWay ? ` gave way: ${one.gaveWay}` : ""}
        </span>
      ))}
    </p>
  );
}

/** The list, which shows what changed since the answer before it. */
function Moving(props: {
  answer: RecommendResponse | null;
  listener: string;
  why: string;
  stale: boolean;
  onPlay: (track: ScoredTrack) => void;
  onSkip: (track: ScoredTrack) => void;
  onExclude: (track: ScoredTrack) => void;
}): JSX.Element {
  const tracks = props.answer?.tracks ?? [];
  const seen = useRef<{ answer: RecommendResponse | null; listener: string; before: Map<string, number> | null }>({
    answer: null,
    listener: "",
    before: null,
  });
  if (props.answer && seen.current.answer !== props.answer) {
    const { answer, listener } = seen.current;
    const places = new Map((answer?.tracks ?? []).map((one, index) => [one.trackId ?? "", index + 1]));
    seen.current = {
      answer: props.answer,
      listener: props.listener,
      before: answer && listener === props.listener ? places : null,
    };
  }
  const before = seen.current.before;
  const list = useRef<HTMLOListElement>(null);
  useMoves(list, props.answer);
  if (props.answer && tracks.length === 0) return <Empty>No track is eligible. Loosen the filter.</Empty>;
  return (
    <ol class={`tracks ${props.stale ? "stale" : ""}`} ref={list}>
      {tracks.map((one, index) => {
        const id = one.trackId ?? "";
        const label = one.title || id;
        return (
          <li key={id} data-id={id} class={id === props.why ? "chosen" : ""}>
            <span class="place">{index + 1}</span>
            <Move now={index + 1} before={before ? (before.get(id) ?? 0) : index + 1} />
            <button type="button" class="what" onClick={() => change({ why: id })} aria-label={`Why ${label}`}>
              <Name track={one} />
              {one.reasons?.length ? (
                <span class="reasons" dir="auto">
                  {one.reasons.join(" · ")}
                </span>
              ) : null}
            </button>
            <span class="score" title={`score ${one.score}, cosine ${one.retrievalScore}`}>
              {percent(one.score)}
              <small> %</small>
            </span>
            <span class="actions">
              <IconButton icon="play" label={`Play: ${label}`} onClick={() => props.onPlay(one)} />
              <IconButton icon="skip" label={`Skip: ${label}`} onClick={() => props.onSkip(one)} />
              <IconButton icon="close" label={`Exclude: ${label}`} onClick={() => props.onExclude(one)} />
            </span>
          </li>
        );
      })}
    </ol>
  );
}

export function Move({ now, before }: { now: number; before: number }): JSX.Element {
  if (before === now) return <span class="move" />;
  if (before === 0) return <span class="move new">new</span>;
  const by = before - now;
  return (
    <span class={by > 0 ? "move up" : "move down"}>
      <span class="unseen">{by > 0 ? "up" : "down"}</span>
      <span aria-hidden="true">{by > 0 ? "↑" : "↓"}</span>
      {Math.abs(by)}
    </span>
  );
}

// Rows glide from where they were; who wants less motion sees them where they are.
function useMoves(list: { current: HTMLOListElement | null }, answer: unknown): void {
  const tops = useRef(new Map<string, number>());
  useEffect(() => {
    const calm = window.matchMedia("(prefers-reduced-motion: reduce)").matches;
    const now = new Map<string, number>();
    for (const row of list.current?.querySelectorAll<HTMLElement>(":scope > li") ?? []) {
      const id = row.dataset.id ?? "";
      now.set(id, row.offsetTop);
      const from = tops.current.get(id);
      if (calm || tops.current.size === 0 || from === row.offsetTop) continue;
      const frames = from === undefined ? [{ opacity: 0 }, { opacity: 1 }] : [{ transform: `translateY(${from - row.offsetTop}px)` }, { transform: "none" }];
      row.animate(frames, { duration: 260, easing: "cubic-bezier(.2,.7,.2,1)" });
    }
    tops.current = now;
  }, [answer]);
}
