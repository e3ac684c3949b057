"use strict";
// Drawings as SVG, small and plain. All of them take numbers and texts, none takes markup.

const chart = {
  /** Runs of neighbouring states as one strip: [[state, length, reason], ...]. */
  strip(runs, tall) {
    const total = Math.max(1, runs.reduce((sum, run) => sum + run[1], 0));
    const made = svg("svg", {
      class: tall ? "strip tall" : "strip", viewBox: `0 0 ${total} 10`, preserveAspectRatio: "none", role: "img",
    });
    const marks = [];
    let at = 0;
    for (const [state, length, reason] of runs) {
      // A run that would be too thin to be seen is drawn wider, over what is fresh beside it.
      const width = state === "fresh" ? length : Math.max(length, total / 150);
      const mark = svg("rect", { class: state, x: Math.min(at, total - width), y: 0, width, height: 10 });
      const why = reason ? ` (${reason})` : "";
      marks.push([state === "fresh" ? 0 : 1, titled(mark, `${format.plural(length, "partition")} ${state}${why}`)]);
      at += length;
    }
    marks.sort((a, b) => a[0] - b[0]);
    made.append(...marks.map((one) => one[1]));
    made.setAttribute("aria-label", runs.map((run) => `${run[1]} ${run[0]}`).slice(0, 12).join(", "));
    return made;
  },

  key(...states) {
    return el("div", "key", ...states.map((state) => el("span", "", el("i", state), state)));
  },

  /** Bars of one part, with the outline of another's behind: shares of each part's own rows. */
  histogram(counts, first, label) {
    const shares = (some) => {
      const total = some.reduce((sum, one) => sum + one, 0);
      return some.map((one) => (total ? one / total : 0));
    };
    const now = shares(counts);
    const before = first ? shares(first) : [];
    const top = Math.max(1e-9, ...now, ...before);
    const made = svg("svg", { viewBox: `0 0 ${Math.max(1, now.length)} 1`, preserveAspectRatio: "none", role: "img" });
    made.setAttribute("aria-label", label);
    now.forEach((one, at) => {
      const height = one / top;
      const bar = svg("rect", { class: "bar", x: at + 0.06, y: 1 - height, width: 0.88, height });
      made.append(titled(bar, `${format.share(one)} of this part`));
    });
    if (before.length) {
      const path = before.map((one, at) => `L${at} ${1 - one / top}L${at + 1} ${1 - one / top}`).join("");
      made.append(svg("path", { class: "first", d: `M0 1${path}L${before.length} 1` }));
    }
    made.append(svg("line", { class: "axis", x1: 0, y1: 1, x2: Math.max(1, now.length), y2: 1 }));
    return made;
  },

  /** Steps over an axis: shares from 0 to 1, null where there is none; widths say how long each is. */
  steps(shares, widths, label) {
    const total = Math.max(1, widths.reduce((sum, one) => sum + one, 0));
    const made = svg("svg", { class: "strip tall", viewBox: `0 0 ${total} 1`, preserveAspectRatio: "none", role: "img" });
    made.setAttribute("aria-label", label);
    let at = 0;
    shares.forEach((share, index) => {
      const width = widths[index];
      const back = svg("rect", { class: "missing", x: at, y: 0, width, height: 1 });
      made.append(titled(back, share === null ? "not built" : `${format.share(share)} of rows have a value`));
      if (share !== null) {
        const bar = svg("rect", { class: "bar", x: at, y: 1 - share, width, height: share });
        made.append(titled(bar, `${format.share(share)} of rows have a value`));
      }
      at += width;
    });
    return made;
  },

  /** One line, or a band with its middle, over places; values may be null. */
  band(rows, show) {
    const known = rows.flat().filter((one) => one !== null && one !== undefined);
    if (!known.length) return el("p", "soft", "no values");
    let low = Math.min(...known);
    let high = Math.max(...known);
    if (low === high) [low, high] = [low - 1, high + 1];
    const wide = 320;
    const tall = 96;
    const x = (at) => (rows.length > 1 ? 4 + ((wide - 8) * at) / (rows.length - 1) : wide / 2);
    const y = (value) => 4 + (tall - 8) * (1 - (value - low) / (high - low));
    const made = svg("svg", { class: "band", viewBox: `0 0 ${wide} ${tall + 4}`, preserveAspectRatio: "none", role: "img" });
    const there = rows.map((row, at) => ({ row, at })).filter(({ row }) => row.length && row.every((one) => one !== null));
    const back = there.slice().reverse();
    for (let from = 0; there.length && from < Math.floor(there[0].row.length / 2); from += 1) {
      const upper = there.map(({ row, at }) => `${x(at)},${y(row[row.length - 1 - from])}`);
      const lower = back.map(({ row, at }) => `${x(at)},${y(row[from])}`);
      made.append(svg("polygon", { class: "area", points: [...upper, ...lower].join(" ") }));
    }
    const middle = there.map(({ row, at }) => `${x(at)},${y(row[Math.floor(row.length / 2)])}`);
    made.append(svg("polyline", { class: "line", points: middle.join(" ") }));
    made.setAttribute("aria-label", `from ${show(low)} to ${show(high)}`);
    return el("figure", "", made, el("figcaption", "soft", `${show(low)} to ${show(high)}`));
  },

  /**
   * Lines over a common axis: [{label, points: [[x, y], ...], color, dashed, area}, ...], at most eight
   * colors. A point whose y is null leaves a gap.
   */
  lines(series, options) {
    const points = series.flatMap((one) => one.points).filter((point) => point[1] !== null);
    if (!points.length) return el("p", "soft", "nothing to draw");
    const range = (at) => [Math.min(...points.map((one) => one[at])), Math.max(...points.map((one) => one[at]))];
    const [left, right] = range(0);
    let [low, high] = range(1);
    if (options.fromZero) low = Math.min(0, low);
    if (low === high) [low, high] = [low - Math.abs(low || 1) / 2, high + Math.abs(high || 1) / 2];
    const [wide, tall] = [1000, 200];
    const x = (value) => (right > left ? (wide * (value - left)) / (right - left) : wide / 2);
    const y = (value) => 3 + (tall - 6) * (1 - (value - low) / (high - low));
    const made = svg("svg", { class: "lines", viewBox: `0 0 ${wide} ${tall}`, preserveAspectRatio: "none", role: "img" });
    for (const part of [0, 0.5, 1]) {
      made.append(svg("line", { class: "axis", x1: 0, y1: 3 + (tall - 6) * part, x2: wide, y2: 3 + (tall - 6) * part }));
    }
    for (const one of series) {
      let path = "";
      let pen = false;
      for (const [at, value] of one.points) {
        if (value !== null) path += `${pen ? "L" : "M"}${x(at).toFixed(1)} ${y(value).toFixed(1)}`;
        pen = value !== null;
      }
      const known = one.points.filter((point) => point[1] !== null);
      if (one.area && known.length) {
        const ends = `L${x(known[known.length - 1][0]).toFixed(1)} ${tall}L${x(known[0][0]).toFixed(1)} ${tall}Z`;
        made.append(svg("path", { class: `area fill${one.color % 8}`, d: path + ends }));
      }
      // A line of one point has no length: its round end is seen.
      if (known.length === 1) path += "h0.01";
      made.append(titled(svg("path", { class: `curve color${one.color % 8}${one.dashed ? " dashed" : ""}`, d: path }), one.label));
    }
    made.setAttribute("aria-label", `${options.label}: ${options.show(low)} to ${options.show(high)}`);
    const legend = series.map((one) => el("span", "", el("i", `back${one.color % 8}${one.dashed ? " hollow" : ""}`), said(one.label)));
    const ends = el("div", "axis soft", el("span", "", options.ends[0]), el("span", "", options.ends[1]));
    const scale = el("p", "soft", `${options.label}: ${options.show(low)} to ${options.show(high)}`);
    return el("figure", "", scale, made, ends, el("div", "key", ...legend));
  },

  /** Amounts beneath each other, as bars of the largest: [[name, value], ...]. */
  amounts(pairs, show) {
    const most = Math.max(1, ...pairs.map((pair) => pair[1]));
    const rows = pairs.flatMap(([name, value]) => {
      const bar = svg("svg", { class: "strip", viewBox: "0 0 1000 10", preserveAspectRatio: "none" });
      bar.append(svg("rect", { class: "bar", x: 0, y: 0, width: (1000 * value) / most, height: 10 }));
      return [said(name), bar, el("span", "number", show(value))];
    });
    return el("div", "amounts", ...rows);
  },

  /**
   * A graph in columns from left to right.
   *
   * nodes: [{id, label, column, kind, here, press}], edges: [[from id, to id]].
   */
  graph(nodes, edges) {
    const [wide, tall, across, down] = [170, 28, 50, 10];
    const columns = [...new Set(nodes.map((one) => one.column))].sort((a, b) => a - b);
    const most = Math.max(...columns.map((column) => nodes.filter((one) => one.column === column).length));
    const height = most * (tall + down) + down;
    const places = new Map();
    columns.forEach((column, index) => {
      const some = nodes.filter((one) => one.column === column);
      const top = (height - some.length * (tall + down) + down) / 2;
      some.forEach((one, at) => places.set(one.id, { x: 2 + index * (wide + across), y: top + at * (tall + down) }));
    });
    const width = columns.length * (wide + across) - across + 4;
    const made = svg("svg", { viewBox: `0 0 ${width} ${height}`, width, height, role: "img" });
    made.setAttribute("aria-label", "lineage");
    for (const [from, to] of edges) {
      const a = places.get(from);
      const b = places.get(to);
      if (!a || !b) continue;
      const [x1, y1, x2, y2] = [a.x + wide, a.y + tall / 2, b.x, b.y + tall / 2];
      const middle = (x1 + x2) / 2;
      made.append(svg("path", { class: "edge", d: `M${x1} ${y1}C${middle} ${y1} ${middle} ${y2} ${x2} ${y2}` }));
    }
    for (const node of nodes) {
      const { x, y } = places.get(node.id);
      const group = svg("g", { class: `node ${node.kind}${node.here ? " here" : ""}`, transform: `translate(${x} ${y})` });
      const text = svg("text", { x: 8, y: 18, direction: "ltr" }, cut(node.label, 22));
      group.append(svg("rect", { width: wide, height: tall, rx: 5 }), text);
      titled(group, node.about || node.label);
      if (node.press) {
        group.setAttribute("tabindex", "0");
        group.setAttribute("role", "link");
        group.addEventListener("click", node.press);
        group.addEventListener("keydown", (event) => event.key === "Enter" && node.press());
      }
      made.append(group);
    }
    // Its natural size, but never larger than the page.
    made.style.width = `${width}px`;
    return el("div", "scroll", made);
  },
};

/** Return the beginning of a text, by characters as people count them. */
function cut(text, most) {
  const characters = Array.from(text);
  return characters.length <= most ? text : `${characters.slice(0, most - 1).join("")}…`;
}
