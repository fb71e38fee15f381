import { useEffect, useRef, useState } from "preact/hooks";
import type { CatalogTrack } from "#api";
import { call, epoch, Problem } from "./server";

export interface Loaded<T> {
  value: T | null; // the last good one, while another is on its way too
  problem: Problem | null;
  busy: boolean;
  tookMs: number;
}

/** What `ask` answers, asked again when `key` changes or the server does. An empty key asks nothing. */
export function useAnswer<T>(key: string, ask: (stop: AbortSignal) => Promise<T>): Loaded<T> {
  const [found, setFound] = useState<Loaded<T>>({ value: null, problem: null, busy: true, tookMs: 0 });
  const now = epoch.value;
  useEffect(() => {
    const stop = new AbortController();
    if (!key) {
      setFound({ value: null, problem: null, busy: false, tookMs: 0 });
      return;
    }
    setFound((before) => ({ ...before, busy: true }));
    const began = performance.now();
    ask(stop.signal).then(
      (value) => setFound({ value, problem: null, busy: false, tookMs: performance.now() - began }),
      (error: unknown) => {
        if (stop.signal.aborted) return;
        const problem = error instanceof Problem ? error : new Problem(-1, String(error));
        setFound((before) => ({ ...before, problem, busy: false }));
      },
    );
    return () => stop.abort();
  }, [key, now]);
  return found;
}

const known = new Map<string, CatalogTrack>();

/** Titles and artists of ids, as soon as they are known. */
export function useTracks(ids: readonly string[]): (id: string) => CatalogTrack {
  const missing = [...new Set(ids)].filter((id) => !known.has(id)).slice(0, 1000);
  useAnswer(missing.join("\n"), async (signal) => {
    const found = await call("GetTracks", { trackIds: missing }, { signal });
    for (const track of found.tracks ?? []) known.set(track.trackId ?? "", track);
    for (const id of found.unknownIds ?? []) known.set(id, { trackId: id });
  });
  return (id) => known.get(id) ?? { trackId: id };
}

export function remember(tracks: readonly CatalogTrack[]): void {
  for (const track of tracks) if (track.trackId) known.set(track.trackId, track);
}

/** The value of one render ago that was not this one. */
export function usePrevious<T>(value: T): T | null {
  const held = useRef<{ now: T; before: T | null }>({ now: value, before: null });
  if (held.current.now !== value) held.current = { now: value, before: held.current.now };
  return held.current.before;
}
