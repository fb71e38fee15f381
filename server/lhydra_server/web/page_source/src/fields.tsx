// Fields of forms: each tells a whole new value, once it is chosen.
import type { ComponentChildren, JSX, TargetedEvent } from "preact";
import { useId, useRef, useState } from "preact/hooks";
import { useAnswer } from "./hooks";
import { Chip } from "./parts";

type Typed = TargetedEvent<HTMLInputElement>;

/** What is typed stays in its field until it is taken, though an answer that arrives meanwhile draws the page anew. */
function useDraft(value: string, take: (text: string) => void) {
  const [draft, setDraft] = useState<string | null>(null);
  return {
    value: draft ?? value,
    onInput: (event: Typed) => setDraft(event.currentTarget.value),
    onChange: (event: Typed) => {
      setDraft(null);
      take(event.currentTarget.value);
    },
    onBlur: () => setDraft(null),
  };
}

export function NumberField(props: {
  label: string;
  value: number | undefined;
  min?: number;
  max?: number;
  step?: number;
  empty?: string; // what no number means
  onChange: (value: number | undefined) => void;
}): JSX.Element {
  const id = useId();
  const draft = useDraft(String(props.value ?? ""), (text) => props.onChange(text === "" ? undefined : Number(text)));
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      <input
        id={id}
        type="number"
        inputMode="decimal"
        min={props.min}
        max={props.max}
        step={props.step ?? 1}
        placeholder={props.empty ?? ""}
        {...draft}
      />
    </div>
  );
}

export function Slider(props: { label: string; value: number | undefined; onChange: (value: number) => void }): JSX.Element {
  const id = useId();
  const draft = useDraft(String(props.value ?? 0), (text) => props.onChange(Number(text)));
  const value = Number(draft.value);
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      <span class="slider">
        <input
          id={id}
          type="range"
          min={0}
          max={1}
          step={0.05}
          aria-valuetext={value ? value.toFixed(2) : "off"}
          {...draft}
        />
        <output for={id}>{value ? value.toFixed(2) : "off"}</output>
      </span>
    </div>
  );
}

export function Choice(props: {
  label: string;
  value: string;
  options: readonly (readonly [string, string])[];
  onChange: (value: string) => void;
}): JSX.Element {
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      <select id={id} value={props.value} onChange={(event) => props.onChange(event.currentTarget.value)}>
        {props.options.map(([value, text]) => (
          <option key={value} value={value} selected={value === props.value}>
            {text}
          </option>
        ))}
      </select>
    </div>
  );
}

export function Switch(props: {
  label: ComponentChildren;
  on: boolean;
  disabled?: boolean;
  onChange: (on: boolean) => void;
}): JSX.Element {
  return (
    <label class="field switch">
      <span>{props.label}</span>
      <input
        type="checkbox"
        role="switch"
        checked={props.on}
        disabled={props.disabled}
        onChange={(event) => props.onChange(event.currentTarget.checked)}
      />
    </label>
  );
}

export function TextField(props: {
  label: string;
  value: string;
  placeholder?: string;
  onChange: (value: string) => void;
}): JSX.Element {
  const draft = useDraft(props.value, (text) => props.onChange(text.trim()));
  const id = useId();
  return (
    <div class="field">
      <label for={id}>{props.label}</label>
      <input
        id={id}
        type="text"
        dir="auto"
        spellcheck={false}
        placeholder={props.placeholder ?? ""}
        {...draft}
      />
    </div>
  );
}

/** Several texts, each a chip; Enter adds one, spelled as what is known where only its case differs. */
export function Texts(props: {
  label: string;
  values: readonly string[];
  placeholder?: string;
  known?: (text: string, signal?: AbortSignal) => Promise<readonly string[]>;
  onChange: (values: string[]) => void;
}): JSX.Element {
  const id = useId();
  const [text, setText] = useState("");
  const latest = useRef(props);
  latest.current = props;
  const find = props.known ?? (async () => []);
  const known = useAnswer(`${props.label} ${text.trim()}`, (signal) => find(text.trim(), signal)).value ?? [];
  const add = async () => {
    const value = text.trim();
    if (!value) return;
    setText("");
    const same = (one: string) => one.toLowerCase() === value.toLowerCase();
    const spelled = (await find(value).catch(() => [])).filter(same);
    const found = spelled.includes(value) ? value : (spelled[0] ?? value);
    const { values, onChange } = latest.current; // other fields may have changed while it was looked up
    if (!values.includes(found)) onChange([...values, found]);
  };
  return (
    <div class="field tall">
      <label for={id}>{props.label}</label>
      <input
        id={id}
        type="text"
        dir="auto"
        spellcheck={false}
        list={known.length ? `${id}-known` : undefined}
        placeholder={props.placeholder ?? "any"}
        value={text}
        onInput={(event) => setText(event.currentTarget.value)}
        onKeyDown={(event) => {
          if (event.key === "Enter") void add();
        }}
        onBlur={() => void add()}
      />
      {known.length ? (
        <datalist id={`${id}-known`}>
          {known.map((one) => (
            <option key={one} value={one} />
          ))}
        </datalist>
      ) : null}
      {props.values.length ? (
        <span class="chips">
          {props.values.map((one) => (
            <Chip key={one} label={one} onRemove={() => props.onChange(props.values.filter((other) => other !== one))}>
              {one}
            </Chip>
          ))}
        </span>
      ) : null}
    </div>
  );
}
