import "./style.css";
import { render, type JSX } from "preact";
import { useEffect, useRef, useState } from "preact/hooks";
import { link, place, VIEWS, type View } from "./address";
import { Compare } from "./compare";
import { Listen } from "./listen";
import { CatalogueMap } from "./map";
import { Operations } from "./operations";
import { Failure, Icon } from "./parts";
import { about, follow, gone, login, logout, needsLogin, notice, Problem } from "./server";
import { Similar } from "./similar";
import { StatusBar } from "./status-bar";

const NAMES: Record<View, string> = {
  listen: "Listen in",
  similar: "Similar",
  compare: "Two bundles",
  map: "Map",
  operations: "Operations",
};
const SHOWN: Record<View, () => JSX.Element> = {
  listen: Listen,
  similar: Similar,
  compare: Compare,
  map: CatalogueMap,
  operations: Operations,
};

function Page(): JSX.Element {
  const { view } = place.value;
  const Shown = SHOWN[view];
  useEffect(() => {
    document.title = `${NAMES[view]} · Lhydra`;
  }, [view]);
  return (
    <>
      <a class="skip-link" href="#content" onClick={(event) => {
        event.preventDefault();
        document.getElementById("content")?.focus();
      }}>
        To the content
      </a>
      <header class="top">
        <a class="brand" href={link("listen")}>
          <svg viewBox="0 0 32 32" aria-hidden="true">
            <rect width="32" height="32" rx="8" />
            <path d="M16 25V15M16 17c0-5-6-3-6-9M16 17c0-5 6-3 6-9M16 15V7" />
          </svg>
          Lhydra
        </a>
        <nav aria-label="Views">
          {VIEWS.map((one) => (
            <a key={one} href={link(one, kept())} aria-current={one === view ? "page" : undefined}>
              {NAMES[one]}
            </a>
          ))}
        </nav>
        {about.value.login === "done" ? (
          <button type="button" class="quiet" onClick={() => void logout()}>
            Log out
          </button>
        ) : null}
        <Theme />
      </header>
      <Banner />
      <main id="content" tabIndex={-1}>
        {needsLogin.value ? <Login /> : <Shown />}
      </main>
      <StatusBar />
      <p class="unseen" role="status">
        {notice.value}
      </p>
    </>
  );
}

// Whoever goes to another view keeps their listener.
function kept(): Record<string, string> {
  const user = place.value.params.get("user");
  return user ? { user } : {};
}

function Banner(): JSX.Element {
  const notices = useRef(0);
  const [seen, setSeen] = useState("");
  useEffect(() => {
    setSeen(notice.value);
    window.clearTimeout(notices.current);
    notices.current = window.setTimeout(() => setSeen(""), 4000);
  }, [notice.value]);
  if (gone.value)
    return (
      <div class="banner gone" role="alert">
        <strong>The server does not answer.</strong> {gone.value.message} The page tries again every second and goes on by itself.
        {gone.value.requestId ? <code> {gone.value.requestId}</code> : null}
      </div>
    );
  return seen ? (
    <div class="toast" aria-hidden="true" dir="auto">
      {seen}
    </div>
  ) : (
    <></>
  );
}

function Login(): JSX.Element {
  const [problem, setProblem] = useState<Problem | null>(null);
  const [busy, setBusy] = useState(false);
  return (
    <form
      class="panel login"
      onSubmit={(event) => {
        event.preventDefault();
        setBusy(true);
        const token = new FormData(event.currentTarget).get("token");
        void login(String(token ?? "")).then((found) => {
          setProblem(found);
          setBusy(false);
        });
      }}
    >
      <h1>Log in</h1>
      <p class="note">This server asks for a token. It is kept in a cookie that no script can read.</p>
      <div class="field tall">
        <label for="token">Token</label>
        <input id="token" name="token" type="password" autocomplete="current-password" required />
      </div>
      <Failure problem={problem} />
      <button type="submit" class="primary" disabled={busy}>
        Log in
      </button>
    </form>
  );
}

const THEMES = ["light dark", "light", "dark"] as const;
const THEME_NAMES = { "light dark": "as the system", light: "light", dark: "dark" } as const;

function Theme(): JSX.Element {
  const [theme, setTheme] = useState<(typeof THEMES)[number]>(
    () => THEMES.find((one) => one === localStorage.getItem("theme")) ?? "light dark",
  );
  useEffect(() => {
    document.documentElement.style.colorScheme = theme;
    localStorage.setItem("theme", theme);
  }, [theme]);
  const next = THEMES[(THEMES.indexOf(theme) + 1) % THEMES.length] ?? "light";
  return (
    <button
      type="button"
      class="icon-button"
      aria-label={`Colours: ${THEME_NAMES[theme]}. Change to ${THEME_NAMES[next]}`}
      title={`Colours: ${THEME_NAMES[theme]}`}
      onClick={() => setTheme(next)}
    >
      <Icon name={theme === "light" ? "sun" : theme === "dark" ? "moon" : "half"} />
    </button>
  );
}

const root = document.getElementById("page");
if (root) {
  void follow();
  render(<Page />, root);
}
