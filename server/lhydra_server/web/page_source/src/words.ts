// Numbers and names as the page writes them.
import type { Tier } from "#api";

export const TIERS: Record<Tier, [string, string]> = {
  TIER_UNSPECIFIED: ["no tier", ""],
  TIER_PERSONAL: ["personal", "the listener is known"],
  TIER_HISTORY: ["history", "unknown id, but the request carries plays"],
  TIER_SEGMENT: ["segment", "only a profile is known"],
  TIER_POPULAR: ["popular", "nothing is known: popular tracks"],
};

const FILTERS: Record<string, string> = {
  "filter.genres": "the genre",
  "filter.artists": "the artist",
  "filter.min_year": "the years", // where both are set, the server names the first
  "filter.max_year": "the years",
  "filter.explicit": "explicit or not",
};
const CONDITION = /filter\.(conditions\[\d+\]|\w+)/g;

/** What the server says, with fields of the filter as the page calls them. */
export const plain = (text: string): string =>
  text.replace(CONDITION, (field) => FILTERS[field] ?? (field.includes("[") ? "a condition" : field));

const whole = new Intl.NumberFormat("en");
export const count = (value: number | string | undefined): string => whole.format(Number(value ?? 0));

/** A probability as a percentage that is never rounded to certainty. */
export function percent(value: number | undefined): string {
  const p = (value ?? 0) * 100;
  if (p > 99.99) return "> 99.99";
  if (p > 0 && p < 0.01) return "< 0.01";
  return p.toFixed(2);
}

export const decimal = (value: number | undefined, places = 3): string => (value ?? 0).toFixed(places).replace("-", "−");
export const signed = (value: number | undefined): string => ((value ?? 0) >= 0 ? "+" : "") + decimal(value);
export const ms = (us: number | undefined): string => ((us ?? 0) / 1000).toFixed(2);

export function bytes(value: number | string | undefined): string {
  const size = Number(value ?? 0);
  for (const [unit, of] of [["GB", 1e9], ["MB", 1e6], ["kB", 1e3]] as const)
    if (size >= of) return `${(size / of).toFixed(1)} ${unit}`;
  return `${size} B`;
}

export function duration(seconds: number | undefined): string {
  const s = Math.floor(seconds ?? 0);
  if (s >= 86_400) return `${Math.floor(s / 86_400)} d ${Math.floor((s % 86_400) / 3600)} h`;
  if (s >= 3600) return `${Math.floor(s / 3600)} h ${Math.floor((s % 3600) / 60)} min`;
  return s >= 60 ? `${Math.floor(s / 60)} min ${s % 60} s` : `${s} s`;
}

export function moment(seconds: string | number | undefined): string {
  const s = Number(seconds ?? 0);
  if (!s) return "";
  return new Date(s * 1000).toISOString().slice(0, 16).replace("T", " ");
}

/** The time that a bundle's id begins with, which people read faster than the id. */
export function shortBundle(id: string | undefined): string {
  const found = /^(\d{4})(\d\d)(\d\d)T(\d\d)(\d\d)\d\d-(\w+)$/.exec(id ?? "");
  return found ? `${found[1]}-${found[2]}-${found[3]} ${found[4]}:${found[5]} · ${found[6]?.slice(0, 4)}` : (id ?? "");
}
