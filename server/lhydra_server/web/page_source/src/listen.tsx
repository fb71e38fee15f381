// Listen in: one listener, what they played, and the list as it moves.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { RecommendRequest, RecommendResponse, ScoredTrack } from "#api";
import { change, NOBODY, place, requestOf, withRequest } from "./address";
import { useAnswer, useTracks } from "./hooks";
import { Listener } from "./listener";
import { Failure, IconButton, TrackSearch } from "./parts";
import { about, call, notice, Problem, show } from "./server";
import { Shape } from "./shape";
import { Tracks } from "./tracks";
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
        <Tracks
          answer={answer.value}
          subject={request.userId ?? ""}
          chosen={why}
          stale={answer.problem !== null}
          score={(one) => (
            <span title={`score ${one.score ?? 0}, cosine ${one.retrievalScore ?? 0}`}>
              {percent(one.score)}
              <small> %</small>
            </span>
          )}
          actions={(one, label) => (
            <>
              <IconButton icon="play" label={`Play: ${label}`} onClick={() => void hear(one, false)} />
              <IconButton icon="skip" label={`Skip: ${label}`} onClick={() => void hear(one, true)} />
              <IconButton icon="close" label={`Exclude: ${label}`} onClick={() => exclude(one)} />
            </>
          )}
          onWhat={(id) => change({ why: id })}
          whatLabel="Why"
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
