// Small parts that several views are made of.
import type { ComponentChildren, JSX } from "preact";
import { useEffect, useId, useRef, useState } from "preact/hooks";
import type { CatalogTrack } from "#api";
import { remember } from "./hooks";
import { call, Problem } from "./server";
import { plain } from "./words";

const PATHS = {
  play: "M7 5v14l12-7z",
  skip: "M5 5v14l9-7zM17 5v14",
  close: "M6 6l12 12M18 6L6 18",
  why: "M9.2 9.2a2.9 2.9 0 1 1 4.4 2.5c-1 .6-1.6 1.2-1.6 2.3M12 17.2v.1",
  plus: "M12 5v14M5 12h14",
  minus: "M5 12h14",
  sun: "M12 8a4 4 0 1 0 0 8 4 4 0 0 0 0-8M12 2v2M12 20v2M2 12h2M20 12h2M5 5l1.4 1.4M17.6 17.6L19 19M5 19l1.4-1.4M17.6 6.4L19 5",
  moon: "M20 14.5A8.5 8.5 0 0 1 9.5 4a8.5 8.5 0 1 0 10.5 10.5z",
  half: "M12 3a9 9 0 1 0 0 18 9 9 0 0 0 0-18zM12 3v18M12 7h5M12 12h9M12 17h5",
  check: "M5 12.5l4.5 4.5L19 7.5",
  stop: "M7 7h10v10H7z",
  near: "M4 8h9a5 5 0 0 1 0 10H9M12 15l-3 3 3 3",
};

export function Icon({ name }: { name: keyof typeof PATHS }): JSX.Element {
  return (
    <svg class={`icon icon-${name}`} viewBox="0 0 24 24" aria-hidden="true">
      <path d={PATHS[name]} />
    </svg>
  );
}

export function IconButton(props: {
  icon: keyof typeof PATHS;
  label: string;
  onClick: () => void;
  pressed?: boolean;
  disabled?: boolean;
}): JSX.Element {
  return (
    <button
      type="button"
      class="icon-button"
      aria-label={props.label}
      title={props.label.split(":")[0]}
      aria-pressed={props.pressed}
      disabled={props.disabled}
      onClick={props.onClick}
    >
      <Icon name={props.icon} />
    </button>
  );
}

/** A failure in words, with the id that finds it in the server's log. */
export function Failure({ problem }: { problem: Problem | null }): JSX.Element | null {
  if (!problem) return null;
  return (
    <div class="failure" role="alert">
      <strong>{problem.heading}</strong>
      <span dir="auto">{plain(problem.message)}</span>
      {problem.retryAfterMs ? <span>Try again in {(problem.retryAfterMs / 1000).toFixed(1)} s.</span> : null}
      {problem.requestId ? (
        <span class="id">
          request <code>{problem.requestId}</code>
        </span>
      ) : null}
    </div>
  );
}

export function Empty({ children }: { children: ComponentChildren }): JSX.Element {
  return <p class="empty">{children}</p>;
}

/** Title and artist, as text and nothing else, each in its own direction. */
export function Name({ track }: { track: { trackId?: string; title?: string; artist?: string } }): JSX.Element {
  return (
    <span class="name">
      <span class="title" dir="auto">
        {track.title || track.trackId || "a track that this bundle does not hold"}
      </span>
      <span class="artist" dir="auto">
        {track.artist || (track.title ? track.trackId : "")}
      </span>
    </span>
  );
}

export interface Option {
  id: string;
  label: ComponentChildren;
}

/** A text field with what it finds below it; arrows choose, Enter takes, Escape closes. */
export function Search(props: {
  label: string;
  placeholder: string;
  find: (text: string, stop: AbortSignal) => Promise<{ options: Option[]; more?: string }>;
  onPick: (id: string) => void;
  free?: boolean; // what is typed may be taken as it stands
  hideLabel?: boolean;
}): JSX.Element {
  const id = useId();
  const [text, setText] = useState("");
  const [open, setOpen] = useState(false);
  const [at, setAt] = useState(-1);
  const [found, setFound] = useState<{ options: Option[]; more?: string }>({ options: [] });
  const [problem, setProblem] = useState<Problem | null>(null);
  const input = useRef<HTMLInputElement>(null);
  useEffect(() => {
    if (!open) return;
    const stop = new AbortController();
    const timer = window.setTimeout(
      () =>
        props.find(text.trim(), stop.signal).then(
          (value) => {
            setFound(value);
            setProblem(null);
            setAt(value.options.length && !props.free ? 0 : -1);
          },
          (error: unknown) => {
            if (stop.signal.aborted) return;
            setFound({ options: [] });
            if (error instanceof Problem) setProblem(error);
          },
        ),
      text ? 100 : 0,
    );
    return () => {
      window.clearTimeout(timer);
      stop.abort();
    };
  }, [text, open]);
  const take = (chosen: string) => {
    props.onPick(chosen);
    setText("");
    setOpen(false);
    input.current?.focus();
  };
  const onKeyDown = (event: KeyboardEvent) => {
    const last = found.options.length - 1;
    if (event.key === "ArrowDown") setAt(at < last ? at + 1 : 0);
    else if (event.key === "ArrowUp") setAt(at > 0 ? at - 1 : last);
    else if (event.key === "Enter") {
      const chosen = open ? found.options[at]?.id : undefined;
      if (chosen !== undefined) take(chosen);
      else if (props.free && text.trim()) take(text.trim());
    } else if (event.key === "Escape") setOpen(false);
    else return;
    if (event.key.startsWith("Arrow")) setOpen(true);
    event.preventDefault();
  };
  const shown = open && (found.options.length > 0 || !!found.more || !!problem);
  return (
    <div
      class="search"
      onFocusOut={(event) => {
        if (!event.currentTarget.contains(event.relatedTarget as Node | null)) setOpen(false);
      }}
    >
      <label for={id} class={props.hideLabel ? "unseen" : ""}>
        {props.label}
      </label>
      <input
        id={id}
        ref={input}
        type="text"
        role="combobox"
        autocomplete="off"
        spellcheck={false}
        placeholder={props.placeholder}
        aria-expanded={shown}
        aria-controls={`${id}-list`}
        aria-autocomplete="list"
        aria-activedescendant={shown && at >= 0 ? `${id}-${at}` : undefined}
        value={text}
        dir="auto"
        onInput={(event) => {
          setText(event.currentTarget.value);
          setOpen(true);
        }}
        onClick={() => setOpen(true)}
        onKeyDown={onKeyDown}
      />
      <div class={shown ? "found" : "found closed"}>
        <ul id={`${id}-list`} role="listbox" aria-label={props.label}>
          {shown &&
            found.options.map((option, index) => (
              <li
                key={option.id}
                id={`${id}-${index}`}
                role="option"
                aria-selected={index === at}
                onPointerDown={(event) => event.preventDefault()}
                onClick={() => take(option.id)}
              >
                {option.label}
              </li>
            ))}
        </ul>
        {shown && found.more ? <p class="more">{found.more}</p> : null}
        {shown ? <Failure problem={problem} /> : null}
      </div>
    </div>
  );
}

/** Finds tracks by the words of titles and artists. */
export function TrackSearch(props: {
  label: string;
  placeholder?: string;
  onPick: (id: string) => void;
  hideLabel?: boolean;
}): JSX.Element {
  const find = async (text: string, signal: AbortSignal) => {
    if (!text) return { options: [] };
    const found = await call("SearchTracks", { text, k: 12 }, { signal });
    const tracks = found.tracks ?? [];
    remember(tracks);
    const total = Number(found.found ?? 0);
    const more = total > tracks.length ? `${total.toLocaleString("en")} tracks found` : total ? "" : "No track has these words";
    return { options: tracks.map((track: CatalogTrack) => ({ id: track.trackId ?? "", label: <Name track={track} /> })), more };
  };
  return (
    <Search
      label={props.label}
      placeholder={props.placeholder ?? "Title or artist"}
      find={find}
      onPick={props.onPick}
      hideLabel={props.hideLabel}
    />
  );
}

/** A chip that can be taken away. */
export function Chip(props: { children: ComponentChildren; onRemove: () => void; label: string; kind?: string }): JSX.Element {
  return (
    <span class={`chip ${props.kind ?? ""}`}>
      <span class="text" dir="auto">
        {props.children}
      </span>
      <button type="button" aria-label={`Remove ${props.label}`} onClick={props.onRemove}>
        <Icon name="close" />
      </button>
    </span>
  );
}
