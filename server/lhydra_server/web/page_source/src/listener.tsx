// Who listens: a stored listener with what they played, or a new one made of a few tracks and a country.
import type { JSX } from "preact";
import type { CatalogTrack, GetUserResponse, RecommendRequest } from "#api";
import { change, NOBODY } from "./address";
import { useAnswer } from "./hooks";
import { setRequest } from "./listen";
import { Icon, IconButton, Name, Search, TrackSearch } from "./parts";
import { call, Problem } from "./server";
import { ProfileFields } from "./shape";
import { count, moment } from "./words";

const SHOWN = 12;

export function Listener(props: {
  request: RecommendRequest;
  records: boolean;
  track: (id: string) => CatalogTrack;
  recorded: number;
}): JSX.Element {
  const { request, track } = props;
  const known = request.userId !== NOBODY;
  const session = request.session?.entries ?? [];
  const history = request.history?.entries ?? [];
  const nameOf = (id: string | undefined) => track(id ?? "").title || id;
  return (
    <section class="panel listener" aria-label="Listener">
      <Who user={known ? (request.userId ?? "") : ""} />
      {known ? null : (
        <>
          <ProfileFields request={request} onChange={setRequest} />
          <TrackSearch
            label="Tracks they play"
            placeholder="Search and add"
            onPick={(trackId) => setRequest({ ...request, history: { entries: [...history, { trackId }] } })}
          />
        </>
      )}
      {session.length || !props.records ? (
        <div class="plays">
          <h3>
            Session <span class="tag">not recorded</span>
          </h3>
          {session.length === 0 ? (
            <p class="note">
              {known ? "This page only reads here, so plays go along" : "Plays go along"} with the request; the answer is the one that would
              be given had they been recorded.
            </p>
          ) : (
            <ul>
              {session.map((entry, index) => (
                <li key={`${entry.trackId}-${index}`}>
                  <Icon name={entry.skipped ? "skip" : "play"} />
                  <Name track={track(entry.trackId ?? "")} />
                  <IconButton
                    icon="close"
                    label={`Take back: ${nameOf(entry.trackId)}`}
                    onClick={() => setRequest({ ...request, session: { entries: session.filter((_, at) => at !== index) } })}
                  />
                </li>
              ))}
            </ul>
          )}
        </div>
      ) : null}
      {history.length ? (
        <div class="plays">
          <h3>
            History <span class="tag">of the request</span>
          </h3>
          <ul>
            {history.map((entry, index) => (
              <li key={`${entry.trackId}-${index}`}>
                <Name track={track(entry.trackId ?? "")} />
                <IconButton
                  icon="close"
                  label={`Remove: ${nameOf(entry.trackId)}`}
                  onClick={() => setRequest({ ...request, history: { entries: history.filter((_, at) => at !== index) } })}
                />
              </li>
            ))}
          </ul>
        </div>
      ) : null}
      {known ? <Stored user={request.userId ?? ""} recorded={props.recorded} /> : null}
    </section>
  );
}

/** Who it is, and another one by search. */
export function Who({ user, nobody }: { user: string; nobody?: string }): JSX.Element {
  const find = async (prefix: string, signal: AbortSignal) => {
    try {
      const found = await call("SearchUsers", { prefix, k: 12 }, { signal });
      const options = (found.userIds ?? []).map((id) => ({ id, label: <span dir="auto">{id}</span> }));
      return { options, more: found.more ? "There are more: type on" : options.length ? "" : "No stored id begins so" };
    } catch (error) {
      if (error instanceof Problem && [403, 404, 501].includes(error.status))
        return { options: [], more: "Listing listeners needs the right admin: type a whole id and press Enter" };
      throw error;
    }
  };
  const pick = (id: string) => change({ user: id, ask: "", why: "", own: "" });
  return (
    <div class="who">
      <h2 dir="auto">{user || (nobody ?? "A new listener")}</h2>
      {user ? (
        <button type="button" class="quiet" onClick={() => pick("")}>
          {nobody ?? "Be a new one"}
        </button>
      ) : null}
      <Search label="Listener" hideLabel placeholder="Find a listener by id" find={find} onPick={pick} free />
    </div>
  );
}

// What the user store has: profile, last plays, history.
function Stored({ user, recorded }: { user: string; recorded: number }): JSX.Element | null {
  const found = useAnswer(JSON.stringify([user, recorded]), (signal) => call("GetUser", { userId: user, maxEntries: 60 }, { signal }));
  if (found.problem)
    return (
      <p class="note">
        {[403, 404, 501].includes(found.problem.status)
          ? "What is stored of a listener needs the right admin."
          : `${found.problem.heading}: ${found.problem.message} (request ${found.problem.requestId})`}
      </p>
    );
  const stored = found.value;
  if (!stored) return null;
  if (!stored.known) return <p class="note">Nothing is stored of this listener.</p>;
  return (
    <details class="stored" open={window.innerWidth >= 760}>
      <summary>What is stored</summary>
      <Profile stored={stored} />
      <LastPlays stored={stored} />
      <History stored={stored} />
    </details>
  );
}

function Profile({ stored }: { stored: GetUserResponse }): JSX.Element | null {
  const columns = Object.entries(stored.profile?.columns ?? {});
  if (!columns.length) return null;
  return (
    <dl class="profile">
      {columns.map(([name, value]) => (
        <div key={name}>
          <dt>{name}</dt>
          <dd dir="auto">{value.text ?? value.number}</dd>
        </div>
      ))}
    </dl>
  );
}

function LastPlays({ stored }: { stored: GetUserResponse }): JSX.Element | null {
  const plays = stored.plays ?? [];
  const now = stored.session ?? 0;
  if (!plays.length) return null;
  return (
    <div class="plays">
      <h3>
        Last plays {now ? <span class="tag">{now === 1 ? "1 is" : `${count(now)} are`} the session of now</span> : null}
      </h3>
      <ul>
        {plays.slice(0, SHOWN).map((play, index) => (
          <li key={`${play.trackId}-${index}`} class={index < now ? "now" : ""} title={moment(play.timestampS)}>
            <Icon name={play.skipped ? "skip" : "play"} />
            <Name track={play} />
          </li>
        ))}
      </ul>
    </div>
  );
}

function History({ stored }: { stored: GetUserResponse }): JSX.Element | null {
  const history = stored.history ?? [];
  if (!history.length) return null;
  return (
    <div class="plays">
      <h3>
        History <span class="tag">{count(stored.historyTracks)} tracks</span>
      </h3>
      <ul>
        {history.slice(0, SHOWN).map((heard, index) => (
          <li key={`${heard.trackId}-${index}`} title={moment(heard.lastS)}>
            <Name track={heard} />
            <span class="number">{Number((heard.count ?? 0).toFixed(1))} ×</span>
          </li>
        ))}
      </ul>
      {history.length > SHOWN ? <p class="note">and {count((stored.historyTracks ?? 0) - SHOWN)} more</p> : null}
    </div>
  );
}
