// Similar: tracks like some, unlike others, in the order of a listener's taste where one is named.
import type { JSX } from "preact";
import { useEffect } from "preact/hooks";
import { change, place } from "./address";
import { NumberField, Switch } from "./fields";
import { useAnswer, useTracks } from "./hooks";
import { Who } from "./listener";
import { Chip, Empty, Failure, IconButton, TrackSearch } from "./parts";
import { call, show, status } from "./server";
import { Tracks } from "./tracks";
import { decimal, percent } from "./words";

export function Similar(): JSX.Element {
  const { params } = place.value;
  const seeds = params.getAll("seed");
  const dislikes = params.getAll("not");
  const user = params.get("user") ?? "";
  const own = user !== "" && params.get("own") !== "no";
  const k = Number(params.get("k") ?? 10) || 10;
  const cap = Number(params.get("cap") ?? 0);
  const track = useTracks([...seeds, ...dislikes]);
  const request = {
    trackIds: seeds,
    dislikeTrackIds: dislikes,
    k,
    ...(own ? { userId: user } : {}),
    ...(cap ? { diversity: { maxPerArtist: cap } } : {}),
  };
  const key = seeds.length ? JSON.stringify(request) : "";
  const answer = useAnswer(key, (signal) => call("SimilarTracks", request, { signal }));
  useEffect(() => {
    if (answer.value) show(answer.value, answer.tookMs);
  }, [answer.value]);
  const chips = (name: string, ids: string[], kind: string) => (
    <span class="chips">
      {ids.map((id) => (
        <Chip key={id} kind={kind} label={track(id).title || id} onRemove={() => change({ [name]: ids.filter((one) => one !== id) })}>
          {track(id).title || id}
        </Chip>
      ))}
    </span>
  );
  const add = (id: string) => change({ seed: [...new Set([...seeds, id])], not: dislikes.filter((one) => one !== id) });
  const dislike = (id: string) => change({ not: [...new Set([...dislikes, id])], seed: seeds.filter((one) => one !== id) });
  return (
    <div class="two">
      <section class="panel side" aria-label="Seeds">
        <h2>Similar tracks</h2>
        <TrackSearch label="Like these" placeholder="Search and add" onPick={add} />
        {chips("seed", seeds, "for")}
        <TrackSearch label="Unlike these" placeholder="Search and add" onPick={dislike} />
        {chips("not", dislikes, "against")}
        <NumberField label="Tracks" value={k} min={1} max={status.value?.maxK ?? 1000} onChange={(value) => change({ k: String(value ?? "") })} />
        <NumberField
          label="Most per artist"
          value={cap || undefined}
          min={1}
          empty="any"
          onChange={(value) => change({ cap: String(value ?? "") })}
        />
        <Who user={user} nobody="For nobody in particular" />
        {user ? <Switch label={`In the order of ${user}'s taste`} on={own} onChange={(on) => change({ own: on ? "" : "no" })} /> : null}
      </section>
      <section class="panel list" aria-label="Similar tracks">
        <header>
          <h2>{seeds.length ? `Like ${seeds.map((id) => track(id).title || id).join(", ")}` : "Nothing to be like yet"}</h2>
        </header>
        <Failure problem={answer.problem} />
        {seeds.length ? (
          <Tracks
            answer={answer.value}
            subject="similar"
            stale={answer.problem !== null}
            score={(one) =>
              own ? (
                <span title="score of the listener">
                  {percent(one.score)}
                  <small> %</small>
                </span>
              ) : (
                <span title={`cosine ${one.retrievalScore ?? 0}`}>{decimal(one.score)}</span>
              )
            }
            actions={(one, label) => (
              <>
                <IconButton icon="plus" label={`Like this too: ${label}`} onClick={() => add(one.trackId ?? "")} />
                <IconButton icon="minus" label={`Unlike this: ${label}`} onClick={() => dislike(one.trackId ?? "")} />
              </>
            )}
          />
        ) : (
          <Empty>Search a track on the left. Add others, or tracks that the list should move away from.</Empty>
        )}
      </section>
    </div>
  );
}
