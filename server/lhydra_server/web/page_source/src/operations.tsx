// Operations: how the server is, live. What changes it stays a command.
import type { JSX } from "preact";
import { useEffect, useState } from "preact/hooks";
import type { BundleInfo, Counted, GateVerdict, Percentiles } from "#api";
import { useAnswer } from "./hooks";
import { Failure, Icon } from "./parts";
import { about, call, gone, needsLogin, status } from "./server";
import { bytes, count, duration, moment, ms, shortBundle } from "./words";

const EVERY_MS = 2_000;

export function Operations(): JSX.Element {
  const [tick, setTick] = useState(0);
  useEffect(() => {
    const timer = window.setInterval(() => {
      if (!document.hidden && !gone.value && !needsLogin.value) setTick((before) => before + 1);
    }, EVERY_MS);
    return () => window.clearInterval(timer);
  }, []);
  const found = useAnswer(`status ${tick}`, (signal) => call("GetStatus", {}, { signal }));
  const bundles = useAnswer(`bundles ${Math.floor(tick / 5)}`, (signal) => call("ListBundles", {}, { signal }));
  const now = found.value ?? status.value;
  const troubles = [
    ["The store's CURRENT is not served", now?.swapError],
    ["The file of rules is not in force", now?.rulesError],
    ["Certificates or tokens are not in force", now?.accessError],
    ["The event log cannot be read", now?.eventLog?.error],
  ].filter(([, text]) => text);
  const well = now && !gone.value && troubles.length === 0;
  return (
    <div class="operations">
      <Failure problem={gone.value ? null : found.problem} />
      <dl class="tiles">
        <Tile name="Health" value={gone.value ? "no answer" : well ? "serving" : now ? "serving, with trouble" : "…"} kind={well ? "good" : "bad"} />
        <Tile name="Workers" value={count(now?.workers)} />
        <Tile name="Calls" value={count((now?.methods ?? []).reduce((sum, one) => sum + Number(one.count ?? 0), 0))} more="of all workers" />
        <Tile name="Up" value={duration(now?.uptimeS)} more="this worker" />
        <Tile name="Tracks" value={count(now?.tracks)} more={now?.indexRecipe} />
        <Tile name="Event log" value={now?.eventLog?.on ? count(now.eventLog.entries) : "off"} more={now?.eventLog?.on ? `plays, ${bytes(now.eventLog.bytes)}` : ""} />
      </dl>
      {troubles.map(([name, text]) => (
        <div key={name} class="failure" role="alert">
          <strong>{name}</strong>
          <span dir="auto">{text}</span>
        </div>
      ))}
      <div class="columns">
        <section class="panel" aria-label="Stages">
          <header>
            <h2>Stages of a request</h2>
            <Unit />
          </header>
          <Times rows={now?.stages ?? []} first="stage" />
        </section>
        <section class="panel" aria-label="Methods">
          <header>
            <h2>Methods</h2>
            <Unit />
          </header>
          <Times rows={(now?.methods ?? []).filter((one) => Number(one.count ?? 0) > 0)} first="method" />
        </section>
      </div>
      <div class="columns three">
        <Counts name="Tiers" rows={now?.tiers ?? []} none="No list was asked for yet." />
        <Counts name="Refusals" rows={now?.refusals ?? []} none="No call was refused." />
        <Counts name="Degraded" rows={now?.degraded ?? []} none="Every list was whole." />
      </div>
      <section class="panel" aria-label="Bundles">
        <header>
          <h2>Bundles</h2>
          <span class="summary">newest first</span>
        </header>
        <Failure problem={bundles.problem} />
        <div class="scroll" tabIndex={0} role="region" aria-label="Table of bundles">
          <table class="table">
            <thead>
              <tr>
                <th scope="col">Bundle</th>
                <th scope="col">State</th>
                <th scope="col">Gate</th>
                <th scope="col" class="number">Tracks</th>
                <th scope="col" class="number">Size</th>
                <th scope="col">Index</th>
                <th scope="col">Made</th>
              </tr>
            </thead>
            <tbody>
              {(bundles.value?.bundles ?? []).map((one) => (
                <Bundle key={one.bundleId} bundle={one} />
              ))}
            </tbody>
          </table>
        </div>
        <h3 class="commands-head">To change what is served, on the server's machine</h3>
        <ul class="commands">
          <li>
            <code>lhydra index rebuild --model MODEL --data DATASET --store STORE</code> makes a bundle and serves it
          </li>
          <li>
            <code>lhydra index rollback [ID] --store STORE</code> goes back to the one before, or to ID
          </li>
        </ul>
      </section>
      {about.value.reports?.length ? (
        <section class="panel" aria-label="Reports">
          <h2>Reports of the store</h2>
          <ul class="commands">
            {about.value.reports.map((one) => (
              <li key={one.href}>
                <a href={one.href} target="_blank" rel="noopener">
                  {one.name}
                </a>
              </li>
            ))}
          </ul>
        </section>
      ) : null}
    </div>
  );
}

function Unit(): JSX.Element {
  return <span class="summary">ms, all workers since they began</span>;
}

function Tile(props: { name: string; value: string; more?: string; kind?: string }): JSX.Element {
  return (
    <div class={`panel tile ${props.kind ?? ""}`}>
      <dt>{props.name}</dt>
      <dd>
        {props.value}
        {props.more ? <small> {props.more}</small> : null}
      </dd>
    </div>
  );
}

function Times({ rows, first }: { rows: Percentiles[]; first: string }): JSX.Element {
  const most = Math.max(...rows.map((one) => one.p99Us ?? 0), 1);
  if (!rows.length)
    return (
      <p class="note">
        Nothing is counted yet. A server counts with <code>--count</code> or <code>--metrics-port</code>.
      </p>
    );
  return (
    <table class="table times">
      <thead>
        <tr>
          <th scope="col">{first}</th>
          <th scope="col" class="number wide">calls</th>
          <th scope="col" class="number">p50</th>
          <th scope="col" class="number">p90</th>
          <th scope="col" class="number">p99</th>
          <th scope="col" class="spread">
            <span class="unseen">spread</span>
          </th>
        </tr>
      </thead>
      <tbody>
        {rows.map((one) => {
          const x = (value: number | undefined) => ((value ?? 0) / most) * 100;
          return (
            <tr key={one.name}>
              <th scope="row">{one.name}</th>
              <td class="number wide">{count(one.count)}</td>
              <td class="number">{ms(one.p50Us)}</td>
              <td class="number">{ms(one.p90Us)}</td>
              <td class="number">{ms(one.p99Us)}</td>
              <td class="spread">
                <svg viewBox="0 0 100 10" preserveAspectRatio="none" aria-hidden="true">
                  <rect class="p99" y="3" width={Math.max(1, x(one.p99Us))} height="4" />
                  <rect class="p90" y="3" width={x(one.p90Us)} height="4" />
                  <rect class="p50" y="3" width={x(one.p50Us)} height="4" />
                </svg>
              </td>
            </tr>
          );
        })}
      </tbody>
    </table>
  );
}

function Counts({ name, rows, none }: { name: string; rows: Counted[]; none: string }): JSX.Element {
  const some = rows.filter((one) => Number(one.count ?? 0) > 0);
  const most = Math.max(...some.map((one) => Number(one.count)), 1);
  return (
    <section class="panel" aria-label={name}>
      <h2>{name}</h2>
      {some.length === 0 ? <p class="note">{none}</p> : null}
      <ul class="counts">
        {some.map((one) => (
          <li key={one.name}>
            <span>{one.name}</span>
            <svg viewBox="0 0 100 6" preserveAspectRatio="none" aria-hidden="true">
              <rect width={(Number(one.count) / most) * 100} height="6" />
            </svg>
            <span class="number">{count(one.count)}</span>
          </li>
        ))}
      </ul>
    </section>
  );
}

function Bundle({ bundle }: { bundle: BundleInfo }): JSX.Element {
  const states = [
    bundle.serving ? "serving" : "",
    bundle.current ? "current" : "",
    bundle.previous ? "rollback takes it" : "",
  ].filter(Boolean);
  const bad = bundle.verdict === "refused" || !!bundle.error;
  return (
    <>
      <tr>
        <th scope="row" title={bundle.bundleId}>
          {shortBundle(bundle.bundleId)}
        </th>
        <td>
          {states.map((one) => (
            <span key={one} class={`badge ${one === "serving" ? "good" : ""}`}>
              {one}
            </span>
          ))}
        </td>
        <td>
          {bundle.error ? (
            <span class="bad" dir="auto">
              {bundle.error}
            </span>
          ) : (
            <details class="gate">
              <summary class={bad ? "bad" : bundle.verdict === "forced" ? "warn" : "good"}>{bundle.verdict || "not told"}</summary>
              <ul>
                {(bundle.gates ?? []).map((one) => (
                  <Gate key={one.name} gate={one} />
                ))}
              </ul>
            </details>
          )}
        </td>
        <td class="number">{count(bundle.tracks)}</td>
        <td class="number">{bytes(bundle.bytes)}</td>
        <td>{bundle.indexRecipe}</td>
        <td>{moment(bundle.createdS)}</td>
      </tr>
    </>
  );
}

function Gate({ gate }: { gate: GateVerdict }): JSX.Element {
  const mark = gate.verdict === "passed" ? "check" : gate.verdict === "refused" ? "close" : "minus";
  const figure = (value: number | undefined) => (value === undefined ? "–" : String(Number(value.toPrecision(3))));
  return (
    <li class={gate.verdict === "refused" ? "bad" : ""}>
      <Icon name={mark} />
      <span>
        {gate.name}: {gate.verdict}
        {gate.found !== undefined ? `, found ${figure(gate.found)}, limit ${figure(gate.limit)}` : ""} {gate.note ?? ""}
      </span>
    </li>
  );
}
