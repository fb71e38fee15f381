// The map of the catalogue: every track a point, coloured by genre, with the listener's history and list drawn in.
import type { JSX } from "preact";
import { useEffect, useMemo, useRef, useState } from "preact/hooks";
import type { GetMapResponse } from "#api";
import { link, NOBODY, place, requestOf } from "./address";
import { useAnswer, useTracks } from "./hooks";
import { Who } from "./listener";
import { Empty, Failure, Name } from "./parts";
import { Points } from "./points";
import { call, show } from "./server";
import { count } from "./words";

export const COLOURS = [
  "#4c7ee0", "#e0803c", "#3fa66b", "#c9517f", "#9268cf", "#c2a22e", "#35a5b5", "#d1605a",
  "#7d9a3c", "#5a67c8", "#b8763f", "#c26bc0", "#4f9f8a", "#8c7b6a", "#6f8fb0",
] as const;
const OTHER = "#8d9097";

// A field of the name `valueOf` that a reply leaves out is a function of every object.
const decoded = (text: unknown): Uint8Array<ArrayBuffer> =>
  Uint8Array.from(atob(typeof text === "string" ? text : ""), (one) => one.charCodeAt(0));

export function CatalogueMap(): JSX.Element {
  const request = { ...requestOf(place.value.params), explain: false };
  const user = request.userId === NOBODY ? "" : (request.userId ?? "");
  const list = useAnswer(JSON.stringify(request), (signal) => call("Recommend", request, { signal }));
  const stored = useAnswer(user, (signal) => call("GetUser", { userId: user, maxEntries: 200 }, { signal }));
  const listed = (list.value?.tracks ?? []).map((one) => one.trackId ?? "");
  const heard = [
    ...(stored.value?.history ?? []).map((one) => one.trackId ?? ""),
    ...(request.history?.entries ?? []).map((one) => one.trackId ?? ""),
    ...(request.session?.entries ?? []).map((one) => one.trackId ?? ""),
  ].filter(Boolean);
  const ready = !list.busy && !stored.busy;
  const also = [...new Set([...listed, ...heard])];
  const found = useAnswer(ready ? JSON.stringify(also) : "", (signal) => call("GetMap", { trackIds: also.slice(0, 1000) }, { signal }));
  useEffect(() => {
    if (list.value) show(list.value, list.tookMs);
  }, [list.value]);
  const map = found.value;
  const [only, setOnly] = useState(-1);
  return (
    <div class="two map-view">
      <section class="panel side" aria-label="Whose map">
        <Who user={user} />
        <p class="note key">
          <i class="ring list-ring" /> list <i class="ring heard-ring" /> heard
        </p>
        {map?.values?.length ? <Legend map={map} only={only} onOnly={setOnly} /> : null}
      </section>
      <section class="panel map-panel" aria-label="Map of the catalogue">
        <Failure problem={found.problem ?? list.problem} />
        {map && !map.trackIds?.length ? (
          <Empty>This bundle has no map. A rebuild with today's version makes one.</Empty>
        ) : map ? (
          <Canvas map={map} only={only} listed={listed} heard={heard} />
        ) : found.busy || !ready ? (
          <Empty>Asking for the map…</Empty>
        ) : null}
      </section>
    </div>
  );
}

function Legend(props: { map: GetMapResponse; only: number; onOnly: (value: number) => void }): JSX.Element {
  const { map, only, onOnly } = props;
  const of = useMemo(() => {
    const counts = new Map<number, number>();
    for (const value of decoded(map.valueOf)) counts.set(value, (counts.get(value) ?? 0) + 1);
    return counts;
  }, [map]);
  return (
    <div>
      <h3>{map.column}</h3>
      <ul class="legend">
        {(map.values ?? []).slice(0, 40).map((name, index) => (
          <li key={name}>
            <button type="button" aria-pressed={only === index} onClick={() => onOnly(only === index ? -1 : index)}>
              <i style={{ background: COLOURS[index] ?? OTHER }} />
              <span dir="auto">{name}</span>
              <span class="number">{count(of.get(index))}</span>
            </button>
          </li>
        ))}
      </ul>
    </div>
  );
}

function Canvas(props: { map: GetMapResponse; only: number; listed: string[]; heard: string[] }): JSX.Element {
  const { map, only } = props;
  const canvas = useRef<HTMLCanvasElement>(null);
  const overlay = useRef<SVGSVGElement>(null);
  const points = useRef<Points | null>(null);
  const [at, setAt] = useState<{ index: number; x: number; y: number } | null>(null);
  const [failed, setFailed] = useState("");
  const ids = map.trackIds ?? [];
  const places = useMemo(() => new Uint16Array(decoded(map.places).buffer), [map]);
  const marks = useMemo(() => {
    const where = new Map(ids.map((id, index) => [id, index]));
    const list = props.listed.map((id, index) => ({ index: where.get(id), text: String(index + 1), kind: "listed" }));
    const shown = new Set(props.listed);
    const heard = props.heard.filter((id) => !shown.has(id)).map((id) => ({ index: where.get(id), text: "", kind: "heard" }));
    return [...heard, ...list].filter((one) => one.index !== undefined);
  }, [map, props.listed.join("\n"), props.heard.join("\n")]);
  const id = at ? (ids[at.index] ?? "") : "";
  const track = useTracks(id ? [id] : []);

  useEffect(() => {
    if (!canvas.current) return;
    try {
      const made = new Points(canvas.current, places, decoded(map.valueOf), [...COLOURS], OTHER);
      points.current = made;
      return () => made.close();
    } catch (error) {
      setFailed(String(error instanceof Error ? error.message : error));
      return;
    }
  }, [map]);
  useEffect(() => {
    const made = points.current;
    if (!made) return;
    made.only = only;
    made.onDraw = () => {
      const shapes = overlay.current?.children ?? [];
      marks.forEach((mark, index) => {
        const [x, y] = made.toScreen(mark.index ?? 0);
        shapes[index]?.setAttribute("transform", `translate(${x.toFixed(1)} ${y.toFixed(1)})`);
      });
    };
    made.draw();
  }, [map, only, marks]);
  useEffect(() => {
    const element = canvas.current;
    if (!element) return;
    // Not passive: the wheel belongs to the map while it is over it.
    const wheel = (event: WheelEvent) => {
      event.preventDefault();
      points.current?.zoom(Math.exp(-event.deltaY * 0.0015), event.offsetX, event.offsetY);
    };
    element.addEventListener("wheel", wheel, { passive: false });
    return () => element.removeEventListener("wheel", wheel);
  }, []);

  const hands = useRef(new Map<number, [number, number]>());
  const onMove = (event: PointerEvent) => {
    const made = points.current;
    if (!made) return;
    const before = hands.current.get(event.pointerId);
    if (!before) {
      const index = made.nearest(event.offsetX, event.offsetY);
      setAt(index < 0 ? null : { index, x: event.offsetX, y: event.offsetY });
      return;
    }
    const other = [...hands.current].find(([hand]) => hand !== event.pointerId)?.[1];
    if (other) {
      const was = Math.hypot(before[0] - other[0], before[1] - other[1]);
      const is = Math.hypot(event.offsetX - other[0], event.offsetY - other[1]);
      made.zoom(is / Math.max(1, was), (event.offsetX + other[0]) / 2, (event.offsetY + other[1]) / 2);
    } else made.pan(event.offsetX - before[0], event.offsetY - before[1]);
    hands.current.set(event.pointerId, [event.offsetX, event.offsetY]);
    setAt(null);
  };
  const onKey = (event: KeyboardEvent) => {
    const made = points.current;
    const step = 60;
    const moves: Record<string, () => void> = {
      ArrowLeft: () => made?.pan(step, 0),
      ArrowRight: () => made?.pan(-step, 0),
      ArrowUp: () => made?.pan(0, step),
      ArrowDown: () => made?.pan(0, -step),
      "+": () => made?.zoom(1.3),
      "-": () => made?.zoom(1 / 1.3),
      "0": () => made?.reset(),
    };
    const move = moves[event.key];
    if (move) {
      move();
      event.preventDefault();
    }
  };
  if (failed) return <Empty>The map needs WebGL, which this browser does not give: {failed}</Empty>;
  return (
    <div class="map">
      <canvas
        ref={canvas}
        tabIndex={0}
        role="img"
        aria-label={`Map of ${count(ids.length)} tracks. Arrow keys move it, plus and minus zoom, 0 shows all.`}
        onKeyDown={onKey}
        onPointerDown={(event) => {
          event.currentTarget.setPointerCapture(event.pointerId);
          hands.current.set(event.pointerId, [event.offsetX, event.offsetY]);
        }}
        onPointerMove={onMove}
        onPointerUp={(event) => hands.current.delete(event.pointerId)}
        onPointerCancel={(event) => hands.current.delete(event.pointerId)}
        onPointerLeave={() => setAt(null)}
        onDblClick={() => {
          if (id) window.location.hash = link("similar", { seed: id, user: place.value.params.get("user") ?? "" });
        }}
      />
      <svg class="marks" ref={overlay} aria-hidden="true">
        {marks.map((mark, index) => (
          <g key={index} class={mark.kind}>
            <circle r={mark.kind === "listed" ? 9 : 5} />
            {mark.text ? <text y="3.5">{mark.text}</text> : null}
          </g>
        ))}
      </svg>
      {at && id ? (
        <div class="tip" style={{ transform: `translate(${Math.max(0, Math.min(at.x + 14, (canvas.current?.clientWidth ?? 0) - 230))}px, ${at.y + 14}px)` }}>
          <Name track={track(id)} />
        </div>
      ) : null}
      <p class="note scale">
        {count(ids.length)} tracks · {map.projection} · drag, wheel or pinch; a double click shows what is similar
      </p>
    </div>
  );
}
