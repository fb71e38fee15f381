// Who listens: a stored listener, or a new one made of a few tracks and a country.
import type { JSX } from "preact";
import type { CatalogTrack, RecommendRequest } from "#api";
import { change, NOBODY } from "./address";
import { setRequest } from "./listen";
import { Icon, IconButton, Name, Search, TrackSearch } from "./parts";
import { ProfileFields } from "./shape";

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
  return (
    <section class="panel listener" aria-label="Listener">
      <Who request={request} />
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
              {known ? "This page only reads, so plays go along" : "Plays go along"} with the request; the answer is the one that would be
              given had they been recorded.
            </p>
          ) : (
            <ul>
              {session.map((entry, index) => (
                <li key={`${entry.trackId}-${index}`}>
                  <Icon name={entry.skipped ? "skip" : "play"} />
                  <Name track={track(entry.trackId ?? "")} />
                  <IconButton
                    icon="close"
                    label={`Take back: ${track(entry.trackId ?? "").title ?? entry.trackId}`}
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
          <h3>History</h3>
          <ul>
            {history.map((entry, index) => (
              <li key={`${entry.trackId}-${index}`}>
                <Name track={track(entry.trackId ?? "")} />
                <IconButton
                  icon="close"
                  label={`Remove: ${track(entry.trackId ?? "").title ?? entry.trackId}`}
                  onClick={() => setRequest({ ...request, history: { entries: history.filter((_, at) => at !== index) } })}
                />
              </li>
            ))}
          </ul>
        </div>
      ) : null}
    </section>
  );
}

/** Who it is, and another one by search. */
function Who({ request }: { request: RecommendRequest }): JSX.Element {
  const known = request.userId !== NOBODY;
  return (
    <div class="who">
      <h2 dir="auto">{known ? request.userId : "A new listener"}</h2>
      {known ? (
        <button type="button" class="quiet" onClick={() => change({ user: "", ask: "", why: "" })}>
          Be a new one
        </button>
      ) : null}
      <Search
        label="Listener"
        hideLabel
        placeholder="Type a listener's id"
        find={async () => ({ options: [] })}
        onPick={(user) => change({ user, ask: "", why: "" })}
        free
      />
    </div>
  );
}
