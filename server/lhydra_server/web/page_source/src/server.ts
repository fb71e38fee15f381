// The calls of the gateway, and what the page knows of the server: whether it answers, who may do what.
import { signal } from "@preact/signals";
import type { GetStatusResponse, Methods, Stage, Tier } from "#api";

const TIMEOUT_MS = 10_000;
const AGAIN_MS = 1_000; // between attempts to reach a server that is gone
const STATUS_MS = 5_000;

/** An answer that was none, in words. */
export class Problem extends Error {
  constructor(
    readonly status: number, // of HTTP; 0 where nothing answered
    detail: string,
    readonly requestId = "",
    readonly retryAfterMs = 0,
  ) {
    super(detail);
  }

  /** What the person who reads it can do about it. */
  get heading(): string {
    if (this.status === 0 || this.status === 503) return "The server does not answer";
    if (this.status === 401) return "The server asks for a token";
    if (this.status === 403) return "The token does not allow this";
    if (this.status === 429) return "Too many requests at once";
    if (this.status === 404 || this.status === 501) return "This server does not have this";
    if (this.status === 504) return "The answer took too long";
    if (this.status === 400) return "The request cannot be answered";
    return "The server failed";
  }
}

export interface About {
  plays: boolean; // whether RecordPlays is passed on
  login: "none" | "needed" | "done";
  compared: boolean; // whether there is a second server
  reports: { name: string; href: string }[];
}

/** How the last answer was made: always in sight. */
export interface Answered {
  tier: Tier;
  bundleId: string;
  degraded: string[];
  stages: Stage[];
  requestId: string;
  tookMs: number; // by the page's clock
}

export const about = signal<About>({ plays: false, login: "none", compared: false, reports: [] });
export const status = signal<GetStatusResponse | null>(null);
export const gone = signal<Problem | null>(null);
export const needsLogin = signal(false);
export const answered = signal<Answered | null>(null);
/** Grows when all that is shown should be asked for again: the server is back, or serves another bundle. */
export const epoch = signal(0);
export const notice = signal("");

/** Calls a method; throws a Problem. */
export async function call<M extends keyof Methods>(
  method: M,
  request: Methods[M]["request"],
  { compared = false, signal: stop }: { compared?: boolean; signal?: AbortSignal } = {},
): Promise<Methods[M]["response"]> {
  const path = `${compared ? "/compared" : ""}/lhydra.v1.Recommender/${method}`;
  const limit = AbortSignal.timeout(TIMEOUT_MS);
  let reply: Response;
  try {
    reply = await fetch(path, {
      method: "POST",
      body: JSON.stringify(request),
      headers: {
        "content-type": "application/json",
        "connect-timeout-ms": String(TIMEOUT_MS),
        "x-lhydra-page": "1",
      },
      signal: stop ? AbortSignal.any([stop, limit]) : limit,
    });
  } catch (error) {
    if (stop?.aborted) throw error;
    const problem = limit.aborted
      ? new Problem(504, `${method}: no answer within ${TIMEOUT_MS / 1000} seconds`)
      : new Problem(0, "The gateway that serves this page cannot be reached.");
    if (problem.status === 0 && !compared) lost(problem);
    throw problem;
  }
  if (reply.ok) return reply.json();
  const problem = await problemOf(reply, method);
  if (problem.status === 401) needsLogin.value = true;
  if (problem.status === 503 && !compared) lost(problem);
  throw problem;
}

async function problemOf(reply: Response, method: string): Promise<Problem> {
  const requestId = reply.headers.get("x-request-id") ?? "";
  try {
    const said = await reply.json();
    return new Problem(reply.status, String(said.detail ?? said.title), said.requestId ?? requestId, said.retryAfterMs);
  } catch {
    return new Problem(reply.status, `${method}: ${reply.status} ${reply.statusText}`, requestId);
  }
}

// One method may fail for want of the user store: only a server that does not tell its status is gone.
function lost(problem: Problem): void {
  if (!gone.value) void look(problem);
}

async function look(problem?: Problem): Promise<void> {
  try {
    const found = await fetch("/lhydra.v1.Recommender/GetStatus", {
      method: "POST",
      body: "{}",
      headers: { "content-type": "application/json", "connect-timeout-ms": "3000", "x-lhydra-page": "1" },
    });
    if (found.status === 401) {
      needsLogin.value = true;
      gone.value = null;
      return;
    }
    if (!found.ok) throw await problemOf(found, "GetStatus");
    told(await found.json());
  } catch (error) {
    const why = error instanceof Problem ? error : new Problem(0, "The gateway that serves this page cannot be reached.");
    if (why.status === 0 || why.status >= 500) {
      gone.value = problem ?? why;
      window.setTimeout(() => void look(problem), AGAIN_MS);
    }
  }
}

function told(found: GetStatusResponse): void {
  const before = status.value;
  const returned = gone.value !== null;
  gone.value = null;
  status.value = found;
  const swapped = before !== null && before.bundleId !== found.bundleId;
  if (swapped) notice.value = `Now served: bundle ${found.bundleId}`;
  else if (returned) notice.value = "The server is back";
  if (swapped || returned) epoch.value += 1;
  if (returned) void askAbout();
}

async function askAbout(): Promise<void> {
  try {
    const reply = await fetch("/about");
    if (reply.ok) about.value = await reply.json();
    needsLogin.value = about.value.login === "needed";
  } catch {
    // The status says so.
  }
}

/** Begins to follow the server; rests while the page is hidden. */
export async function follow(): Promise<void> {
  await askAbout();
  await look();
  window.setInterval(() => {
    if (!document.hidden && !gone.value && !needsLogin.value) void look();
  }, STATUS_MS);
}

/** Tells the server's answer to the bar below. */
export function show(
  reply: { tier?: Tier; bundleId?: string; degraded?: string[]; stages?: Stage[]; requestId?: string },
  tookMs: number,
): void {
  answered.value = {
    tier: reply.tier ?? "TIER_UNSPECIFIED",
    bundleId: reply.bundleId ?? "",
    degraded: reply.degraded ?? [],
    stages: reply.stages ?? [],
    requestId: reply.requestId ?? "",
    tookMs,
  };
}

/** Tries a token; a Problem where the server refuses it. */
export async function login(token: string): Promise<Problem | null> {
  try {
    const reply = await fetch("/login", { method: "POST", body: new URLSearchParams({ token }) });
    if (!reply.ok) return problemOf(reply, "login");
    await askAbout();
    needsLogin.value = false;
    await look();
    epoch.value += 1;
    return null;
  } catch {
    return new Problem(0, "The gateway that serves this page cannot be reached.");
  }
}

export async function logout(): Promise<void> {
  await fetch("/logout", { method: "POST", headers: { "x-lhydra-page": "1" } });
  await askAbout();
  await look();
  epoch.value += 1;
}
