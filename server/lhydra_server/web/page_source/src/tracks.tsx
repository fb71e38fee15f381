// A list of tracks, which shows what changed since the answer before it.
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useRef } from "preact/hooks";
import type { ScoredTrack } from "#api";
import { Empty, Name } from "./parts";

export function Tracks(props: {
  answer: { tracks?: ScoredTrack[] } | null;
  subject: string; // of whom or what: places of another one are not compared
  chosen?: string;
  stale: boolean;
  score: (track: ScoredTrack) => ComponentChildren;
  actions?: (track: ScoredTrack, label: string) => ComponentChildren;
  onWhat?: (id: string) => void;
  whatLabel?: string;
  before?: ReadonlyMap<string, number>; // places to compare with, in place of those of the answer before
}): JSX.Element {
  const tracks = props.answer?.tracks ?? [];
  const seen = useRef<{ answer: object | null; subject: string; places: Map<string, number>; before: Map<string, number> | null }>({
    answer: null,
    subject: "",
    places: new Map(),
    before: null,
  });
  if (props.answer && seen.current.answer !== props.answer) {
    const { answer, subject, places } = seen.current;
    seen.current = {
      answer: props.answer,
      subject: props.subject,
      places: new Map(tracks.map((one, index) => [one.trackId ?? "", index + 1])),
      before: answer && subject === props.subject ? places : null,
    };
  }
  const before = props.before ?? seen.current.before;
  const list = useRef<HTMLOListElement>(null);
  useMoves(list, props.answer);
  if (props.answer && tracks.length === 0) return <Empty>No track is eligible. Loosen the filter; genres and artists count as the catalogue writes them.</Empty>;
  return (
    <ol class={`tracks ${props.stale ? "stale" : ""}`} ref={list}>
      {tracks.map((one, index) => {
        const id = one.trackId ?? "";
        const label = one.title || id;
        const text = (
          <>
            <Name track={one} />
            {one.reasons?.length ? (
              <span class="reasons" dir="auto">
                {one.reasons.join(" · ")}
              </span>
            ) : null}
          </>
        );
        return (
          <li key={id} data-id={id} class={id === props.chosen ? "chosen" : ""}>
            <span class="place">{index + 1}</span>
            <Move now={index + 1} before={before ? (before.get(id) ?? 0) : index + 1} />
            {props.onWhat ? (
              <button type="button" class="what" onClick={() => props.onWhat?.(id)}>
                <span class="unseen">{props.whatLabel} </span>
                {text}
              </button>
            ) : (
              <span class="what">{text}</span>
            )}
            <span class="score">{props.score(one)}</span>
            {props.actions ? <span class="actions">{props.actions(one, label)}</span> : null}
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
