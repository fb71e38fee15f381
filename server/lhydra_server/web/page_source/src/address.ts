// Where the page is: a view and what it shows, in the hash, so that every view can be linked.
import { signal } from "@preact/signals";
import type { RecommendRequest } from "#api";

export const VIEWS = ["listen", "similar", "compare", "map", "operations"] as const;
export type View = (typeof VIEWS)[number];

export interface Place {
  view: View;
  params: URLSearchParams;
}

function read(): Place {
  const [path = "", query = ""] = window.location.hash.replace(/^#\/?/, "").split("?");
  const view = VIEWS.find((one) => one === path) ?? "listen";
  return { view, params: new URLSearchParams(query) };
}

export const place = signal<Place>(read());
window.addEventListener("hashchange", () => {
  place.value = read();
});

export function link(view: View, params: URLSearchParams | Record<string, string> = {}): string {
  const query = new URLSearchParams(params).toString();
  return `#/${view}${query ? `?${query}` : ""}`;
}

/** Changes what the view shows: a value of "" takes a parameter away, a list puts one in for each of its values. */
export function change(changes: Record<string, string | string[]>): void {
  const params = new URLSearchParams(place.value.params);
  for (const [name, value] of Object.entries(changes)) {
    params.delete(name);
    for (const one of Array.isArray(value) ? value : [value]) if (one) params.append(name, one);
  }
  window.location.hash = link(place.value.view, params);
}

// The user has a parameter of their own, and the rest of a request is its JSON: what the API can say, an address can.
export const NOBODY = "(a new listener)";
export const DEFAULT: RecommendRequest = { k: 10, explain: true };

export function requestOf(params: URLSearchParams): RecommendRequest {
  let told: RecommendRequest = {};
  try {
    told = JSON.parse(params.get("ask") ?? "{}") as RecommendRequest;
  } catch {
    // An address that somebody cut short: the default is shown.
  }
  return { ...DEFAULT, ...told, userId: params.get("user") || NOBODY };
}

export function withRequest(request: RecommendRequest): Record<string, string> {
  const { userId, nowS: _now, ...rest } = request;
  const told = pruned(rest) as Record<string, unknown>;
  for (const [name, value] of Object.entries(DEFAULT)) if (told[name] === value) delete told[name];
  return {
    user: userId === NOBODY ? "" : (userId ?? ""),
    ask: Object.keys(told).length ? JSON.stringify(told) : "",
  };
}

// Without what is empty: the same request has one address. `false` stays: it is no default of the page.
function pruned(value: unknown): unknown {
  if (Array.isArray(value)) return value.length ? value.map(pruned) : undefined;
  if (value === null || typeof value !== "object") return value === "" ? undefined : value;
  const kept = Object.entries(value)
    .map(([name, one]) => [name, pruned(one)] as const)
    .filter(([, one]) => one !== undefined);
  return kept.length ? Object.fromEntries(kept) : undefined;
}
