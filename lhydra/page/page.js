// Draws every chart of the page; what it shows is JSON inside the element.
"use strict";
(() => {
  const color = (name) => getComputedStyle(document.documentElement).getPropertyValue(`--${name}`).trim();

  // A logarithmic axis of some values, with numbers on it however few or many decades they span.
  function decades(values) {
    const shown = values.filter((value) => value > 0).map(Math.log10);
    const least = Math.min(...shown), most = Math.max(...shown), span = most - least;
    return { type: "log", nticks: undefined, dtick: span < 1.5 ? "D2" : Math.ceil(span / 7), range: [least - 0.3, most + 0.15] };
  }

  // Dots with intervals, one row per label; several series share a row side by side.
  function dots(chart) {
    const rows = chart.labels.length;
    const band = chart.series.length > 1 ? 0.5 / (chart.series.length - 1) : 0;
    const traces = chart.series.map((series, s) => {
      const shown = series.points.map((point, row) => ({ ...point, row })).filter((point) => point.mean !== null);
      const tone = shown.map((point) => color(chart.tones[point.row]));
      return {
        type: "scatter", mode: "markers", name: series.name, showlegend: chart.series.length > 1,
        x: shown.map((point) => point.mean),
        y: shown.map((point) => point.row + (chart.series.length > 1 ? s * band - 0.25 : 0)),
        text: shown.map((point) => `${chart.labels[point.row]}<br>${point.text}`),
        hovertemplate: `%{text}<extra>${series.name}</extra>`,
        marker: { size: 9.5, symbol: series.open ? "circle-open" : "circle", color: tone, line: { width: 2, color: tone } },
        shown,
      };
    });
    // error bars have one colour per trace, so intervals are drawn as lines
    const lines = traces.flatMap((trace) => trace.shown.map((point, n) => ({ point, y: trace.y[n] })))
      .filter(({ point }) => point.low !== null && point.high !== null && point.low !== point.high)
      .map(({ point, y }) => ({
        type: "line", layer: "below", x0: point.low, x1: point.high, y0: y, y1: y,
        line: { color: color(chart.tones[point.row]), width: 2.5 }, opacity: 0.55,
      }));
    traces.forEach((trace) => delete trace.shown);
    const points = chart.series.flatMap((series) => series.points).filter((point) => point.mean !== null);
    const ends = points.flatMap((point) => [point.low ?? point.mean, point.high ?? point.mean, point.mean]);
    if (chart.reference !== null) ends.push(chart.reference);
    const least = Math.min(...ends), most = Math.max(...ends), pad = 0.06 * (most - least || Math.abs(most) || 1);
    const range = chart.range ?? [least - pad, most + pad];
    const marks = chart.reference === null ? [] : [{
      type: "line", layer: "below", x0: chart.reference, x1: chart.reference, y0: -0.6, y1: rows - 0.4,
      line: { color: color("soft"), width: 1.4, dash: "dot" },
    }];
    return [traces, {
      height: rows * (chart.series.length > 1 ? 46 : 32) + 74 + (chart.series.length > 1 ? 24 : 0),
      shapes: [...marks, ...lines],
      xaxis: { range, title: { text: chart.x }, zeroline: false, nticks: 6, tickformat: chart.format },
      yaxis: {
        range: [rows - 0.4, -0.6], tickvals: chart.labels.map((_, row) => row), ticktext: chart.labels, showgrid: false,
        zeroline: false, automargin: true,
      },
    }];
  }

  function lines(chart) {
    const style = {
      accent: { color: color("accent"), width: 2.6 }, quiet: { color: color("quiet"), width: 2.2 },
      dashed: { color: color("faint"), width: 1.4, dash: "dash" }, dotted: { color: color("faint"), width: 1.8, dash: "dot" },
    };
    const named = chart.tick_names && !chart.log; // steps that have a name each
    const traces = chart.series.map((series) => ({
      type: "scatter", mode: series.marked ? "lines+markers" : "lines", name: series.name, x: series.x, y: series.y,
      line: style[series.tone], marker: { size: 7 }, connectgaps: false,
      text: named ? series.x.map((step) => chart.tick_names[step]) : undefined,
      hovertemplate: `${chart.x} ${named ? "%{text}" : "%{x:.3~g}"}<br>${chart.y} %{y:.4~g}<extra>${series.name}</extra>`,
    }));
    const square = chart.range ? { range: chart.range, constrain: "domain" } : {};
    return [traces, {
      height: chart.range ? 380 : 320, showlegend: chart.series.length > 1,
      xaxis: { title: { text: chart.x }, zeroline: false, showgrid: false, type: chart.log ? "log" : "linear", ...square,
        ...(chart.tick_names ? { tickangle: 0 } : {}),
        ...(chart.ticks ? { tickvals: chart.ticks, ticktext: chart.tick_names ?? chart.ticks.map(String) } : {}) },
      yaxis: { title: { text: chart.y }, zeroline: false, automargin: true, nticks: 6, tickformat: chart.format, ...square,
        ...(chart.log_y ? decades(chart.series.flatMap((series) => series.y)) : {}) },
    }];
  }

  // Columns by time or by bin; a place for each, a name for as many as there is room for.
  function columns(chart, width) {
    const n = chart.starts.length, dates = chart.x === "";
    const every = Math.ceil(n / Math.max(3, Math.floor(width / (dates ? 110 : 44))));
    const shown = chart.starts.map((_, place) => place).filter((place) => place % every === 0);
    return [[{
      type: "bar", x: chart.starts.map((_, place) => place), y: chart.heights, marker: { color: color("accent") },
      hovertext: chart.notes, hovertemplate: "%{hovertext}<extra></extra>",
    }], {
      height: 300, bargap: n > 60 ? 0.12 : 0.28,
      xaxis: { tickvals: shown, ticktext: shown.map((place) => chart.starts[place]), showgrid: false, zeroline: false,
        range: [-0.6, n - 0.4], tickangle: 0, ...(dates ? {} : { title: { text: chart.x } }) },
      yaxis: { title: { text: chart.y }, zeroline: false, automargin: true, nticks: 6, tickformat: ",.3~s",
        ...(chart.log ? decades(chart.heights) : {}) },
    }];
  }

  // Rows that are divided into parts.
  function bars(chart) {
    const ink = { accent: color("card"), "accent-soft": color("ink"), "quiet-soft": color("ink") };
    const traces = chart.parts.map((part) => ({
      type: "bar", orientation: "h", name: part.name, y: chart.labels.map((_, row) => row), x: part.shares,
      marker: { color: color(part.tone) }, text: part.shares.map((share) => (share < 0.07 ? "" : `${Math.round(share * 100)} %`)),
      insidetextfont: { color: ink[part.tone], size: 12.5 }, insidetextanchor: "middle", textposition: "inside", textangle: 0,
      customdata: part.counts, hovertemplate: `%{customdata:,} (%{x:.1%})<extra>${part.name}</extra>`,
    }));
    return [traces, {
      height: chart.labels.length * 40 + 90, barmode: "stack", bargap: 0.28,
      xaxis: { range: [0, 1], tickformat: ".0%", title: { text: chart.x }, showgrid: false, zeroline: false },
      yaxis: { range: [chart.labels.length - 0.5, -0.5], tickvals: chart.labels.map((_, row) => row),
        ticktext: chart.labels, showgrid: false, zeroline: false, automargin: true },
    }];
  }

  const kinds = { dots, lines, columns, bars };
  const specs = new Map();
  for (const place of document.querySelectorAll(".chart")) {
    specs.set(place, JSON.parse(place.querySelector("script").textContent));
  }
  function draw(place) {
    const [traces, layout] = kinds[specs.get(place).kind](specs.get(place), place.clientWidth);
    const quiet = { color: color("soft"), size: 13 };
    const narrow = place.clientWidth < 420;
    for (const axis of [layout.xaxis, layout.yaxis]) {
      Object.assign(axis, { gridcolor: color("line"), linecolor: color("line"), tickfont: quiet, fixedrange: true });
      if (axis.title) Object.assign(axis.title, { font: quiet, standoff: 12 });
    }
    Plotly.react(place, traces, {
      showlegend: traces.length > 1, ...layout,
      margin: { l: 12, r: 18, t: 12, b: 48 },
      legend: { traceorder: "normal", orientation: "h", x: 0, y: 1, xanchor: "left", yanchor: "bottom", font: { size: 13 }, itemclick: false,
        itemdoubleclick: false, tracegroupgap: 4, entrywidth: narrow ? 1 : undefined, entrywidthmode: narrow ? "fraction" : "pixels" },
      font: { family: getComputedStyle(document.body).fontFamily, color: color("ink"), size: 13.5 },
      paper_bgcolor: "rgba(0,0,0,0)", plot_bgcolor: "rgba(0,0,0,0)",
      hoverlabel: { bgcolor: color("card"), bordercolor: color("line"), font: { color: color("ink"), size: 13 } },
    }, { displayModeBar: false, responsive: true });
  }
  // A chart in a closed part has no width yet: it is drawn when it is opened.
  const drawOpen = () => specs.forEach((_, place) => place.clientWidth && draw(place));
  document.querySelectorAll("details").forEach((details) => details.addEventListener("toggle", drawOpen));
  matchMedia("(prefers-color-scheme: dark)").addEventListener("change", drawOpen);
  drawOpen();
})();
