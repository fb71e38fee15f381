// What shapes the list: how many, repeats, rules and filters of the request, by switches.
import type { JSX } from "preact";
import type { Filter, RecommendRequest, RepeatPolicy, Rules } from "#api";
import { Choice, NumberField, Slider, Switch, TextField, Texts } from "./fields";
import { Chip } from "./parts";
import { call, epoch, status } from "./server";

const REPEATS: [RepeatPolicy, string][] = [
  ["REPEAT_POLICY_EXCLUDE", "never"],
  ["REPEAT_POLICY_DECAY", "after a time"],
  ["REPEAT_POLICY_LEARNT", "as learnt"],
  ["REPEAT_POLICY_ALLOW", "like any other"],
];

let held: { epoch: number; values: Promise<readonly string[]> } | undefined;

/** The genres of the catalogue, asked for once a bundle; none without the right admin. */
function genres(): Promise<readonly string[]> {
  if (held?.epoch !== epoch.value) {
    const values = call("GetMap", { maxPoints: 1 }).then((found) => found.values ?? [], () => []);
    held = { epoch: epoch.value, values };
  }
  return held.values;
}

/** The artists of tracks that a text finds, if they have it in their names. */
async function artists(text: string, signal?: AbortSignal): Promise<readonly string[]> {
  if (!text) return [];
  const found = await call("SearchTracks", { text, k: 100 }, { signal });
  const names = new Set((found.tracks ?? []).map((track) => track.artist ?? ""));
  return [...names].filter((name) => name.toLowerCase().includes(text.toLowerCase())).slice(0, 20);
}

export function Shape(props: {
  request: RecommendRequest;
  onChange: (request: RecommendRequest) => void;
  nameOf: (id: string) => string;
}): JSX.Element {
  const { request } = props;
  const rules = request.rules ?? {};
  const filter = request.filter ?? {};
  const set = (changes: Partial<RecommendRequest>) => props.onChange({ ...request, ...changes });
  const rule = (changes: Partial<Rules>) => set({ rules: { ...rules, ...changes } });
  const only = (changes: Partial<Filter>) => set({ filter: { ...filter, ...changes } });
  const sets = status.value?.ruleSets ?? [];
  const explore = rules.exploreSlots ?? 0;
  const excluded = request.excludeTrackIds ?? [];
  const conditions = filter.conditions ?? [];
  return (
    <div class="shape">
      <section aria-label="The list">
        <h3>List</h3>
        <NumberField
          label="Tracks"
          value={request.k}
          min={1}
          max={status.value?.maxK ?? 1000}
          onChange={(k) => set({ k: k && k > 0 ? Math.round(k) : 10 })}
        />
        <Choice
          label="Heard tracks return"
          value={request.repeatPolicy ?? "REPEAT_POLICY_EXCLUDE"}
          options={REPEATS}
          onChange={(value) =>
            set({ repeatPolicy: value === "REPEAT_POLICY_EXCLUDE" ? undefined : (value as RepeatPolicy) })
          }
        />
        <NumberField
          label="Depth"
          value={request.depth}
          min={1}
          empty={String(status.value?.defaultDepth ?? "")}
          onChange={(depth) => set({ depth })}
        />
        <Switch label="Reasons" on={request.explain ?? false} onChange={(explain) => set({ explain })} />
      </section>
      <section aria-label="Rules">
        <h3>Rules</h3>
        {sets.length ? (
          <Choice
            label="Rule set"
            value={rules.off ? "-off" : (rules.set ?? "")}
            options={[["", "server's default"], ...sets.map((one) => [one, one] as const), ["-off", "none"]]}
            onChange={(value) => rule({ off: value === "-off" || undefined, set: value === "-off" ? "" : value })}
          />
        ) : null}
        <NumberField
          label="Most per artist"
          value={request.diversity?.maxPerArtist}
          min={1}
          empty="any"
          onChange={(maxPerArtist) => set({ diversity: { ...request.diversity, maxPerArtist } })}
        />
        <Slider
          label="Diversity"
          value={request.diversity?.strength}
          onChange={(strength) => set({ diversity: { ...request.diversity, strength: strength || undefined } })}
        />
        <Slider
          label="Calibration"
          value={rules.calibration ? (rules.calibration.strength ?? 0.5) : 0}
          onChange={(strength) =>
            rule({ calibration: strength ? { column: rules.calibration?.column ?? "genre", strength } : undefined })
          }
        />
        <NumberField
          label="Places to explore"
          value={explore || undefined}
          min={0}
          empty="none"
          onChange={(slots) =>
            set({ seed: slots ? (request.seed ?? "1") : undefined, rules: { ...rules, exploreSlots: slots || undefined } })
          }
        />
        {explore ? (
          <button type="button" class="quiet" onClick={() => set({ seed: String(Number(request.seed ?? 0) + 1) })}>
            Draw again
          </button>
        ) : null}
      </section>
      <section aria-label="Filter">
        <h3>Only tracks with</h3>
        <Texts
          label="Genre"
          values={filter.genres ?? []}
          known={genres}
          onChange={(values) => only({ genres: values })}
        />
        <Texts label="Artist" values={filter.artists ?? []} known={artists} onChange={(artists) => only({ artists })} />
        <NumberField label="From year" value={filter.minYear} empty="any" onChange={(minYear) => only({ minYear })} />
        <NumberField label="To year" value={filter.maxYear} empty="any" onChange={(maxYear) => only({ maxYear })} />
        <Choice
          label="Explicit"
          value={filter.explicit === undefined ? "" : String(filter.explicit)}
          options={[["", "any"], ["false", "no"], ["true", "only"]]}
          onChange={(value) => only({ explicit: value === "" ? undefined : value === "true" })}
        />
        {conditions.length ? (
          <p class="note">
            {conditions.length} more condition{conditions.length > 1 ? "s" : ""} on {conditions.map((one) => one.column).join(", ")}{" "}
            <button type="button" class="quiet" onClick={() => only({ conditions: undefined })}>
              Remove
            </button>
          </p>
        ) : null}
      </section>
      {excluded.length ? (
        <section aria-label="Excluded">
          <h3>Excluded</h3>
          <span class="chips">
            {excluded.map((id) => (
              <Chip
                key={id}
                label={props.nameOf(id)}
                onRemove={() => set({ excludeTrackIds: excluded.filter((one) => one !== id) })}
              >
                {props.nameOf(id)}
              </Chip>
            ))}
          </span>
        </section>
      ) : null}
    </div>
  );
}

/** The profile of a listener who is not stored. */
export function ProfileFields(props: { request: RecommendRequest; onChange: (request: RecommendRequest) => void }): JSX.Element {
  const columns = props.request.profile?.columns ?? {};
  const set = (name: string, value: { text?: string; number?: number } | undefined) => {
    const { [name]: _gone, ...others } = columns;
    props.onChange({ ...props.request, profile: { columns: value ? { ...others, [name]: value } : others } });
  };
  return (
    <>
      <TextField
        label="Country"
        value={columns.country?.text ?? ""}
        placeholder="unknown"
        onChange={(text) => set("country", text ? { text } : undefined)}
      />
      <NumberField
        label="Age"
        value={columns.age?.number}
        min={0}
        empty="unknown"
        onChange={(number) => set("age", number === undefined ? undefined : { number })}
      />
    </>
  );
}
