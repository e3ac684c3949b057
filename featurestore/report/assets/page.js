"use strict";
// The shell of every report: elements, formats, the theme, and tables that draw only what is looked at.
// Nothing here takes markup: all text of the data goes in by textContent.

const SVG = "http://www.w3.org/2000/svg";

/** Return an element with a class, and children: elements, or texts. */
function el(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children.filter((one) => one !== null && one !== undefined));
  return made;
}

/** Return a text of the data, kept apart from its surroundings whatever direction it is written in. */
function said(text) {
  const made = el("bdi", "", String(text));
  made.dir = "auto";
  made.title = String(text);
  return made;
}

/** Return an element of SVG with attributes; what it says is its title or text. */
function svg(tag, attributes, ...children) {
  const made = document.createElementNS(SVG, tag);
  for (const [name, value] of Object.entries(attributes || {})) made.setAttribute(name, value);
  made.append(...children);
  return made;
}

function titled(element, text) {
  element.append(svg("title", {}, text));
  return element;
}

const format = {
  count: (value) => Number(value).toLocaleString("en-US"),
  bytes(value) {
    let left = value;
    for (const unit of ["B", "KiB", "MiB", "GiB"]) {
      if (Math.abs(left) < 1024) return unit === "B" ? `${left} B` : `${left.toFixed(1)} ${unit}`;
      left /= 1024;
    }
    return `${left.toFixed(1)} TiB`;
  },
  share(value) {
    if (value === null || value === undefined) return "–";
    const percent = 100 * value;
    if (percent > 0 && percent < 0.1) return "<0.1%";
    if (percent < 100 && percent > 99.9) return ">99.9%";
    return `${percent.toFixed(percent === 0 || percent === 100 ? 0 : 1)}%`;
  },
  number(value) {
    if (value === null || value === undefined) return "–";
    const size = Math.abs(value);
    if (size !== 0 && (size >= 1e6 || size < 1e-3)) return value.toExponential(2);
    return String(Number(value.toPrecision(4)));
  },
  /** Seconds since 1970 as a date, to the second where it is not midnight. */
  time(value) {
    if (value === null || value === undefined) return "–";
    const moment = new Date(1000 * value);
    if (Number.isNaN(moment.getTime())) return format.number(value);
    const text = moment.toISOString().replace(".000Z", "").replace("Z", "");
    return text.endsWith("T00:00:00") ? text.slice(0, -9) : text;
  },
  /** A time of the data, as ISO 8601 text, to the second. */
  moment: (text) => text.replace(/(T\d\d:\d\d:\d\d)\.\d+/, "$1").replace(/T00:00:00$/, "").replace("T", " "),
  plural: (count, noun) => `${format.count(count)} ${noun}${count === 1 ? "" : "s"}`,
};

/** Return a list of names with what is said of them. */
function definitions(className, pairs) {
  const made = el("dl", className);
  for (const [name, value] of pairs) {
    const pair = [el("dt", "", said(name)), el("dd", "", value instanceof Node ? value : said(value))];
    made.append(...(className === "facts" ? [el("div", "", ...pair)] : pair));
  }
  return made;
}

/** Return the top of a page, with the button that changes between light and dark. */
function heading(title, ...lines) {
  const change = el("button", "", "Light / dark");
  change.id = "theme";
  change.addEventListener("click", () => {
    const root = document.documentElement;
    const system = matchMedia("(prefers-color-scheme: dark)").matches ? "dark" : "light";
    root.dataset.theme = (root.dataset.theme || system) === "dark" ? "light" : "dark";
  });
  return el("header", "", el("div", "", el("h1", "", said(title)), ...lines), change);
}

/**
 * A table of many rows that can be searched and sorted; rows are drawn as they come into view.
 *
 * columns: {name, of(row) -> value to sort by, show(row) -> text or element, number, spare, width}
 * options: {search(row) -> text, open(row) -> element drawn below the row, sort: index of a column,
 *           label, noun}
 */
class LazyTable {
  static CHUNK = 50;

  constructor(columns, rows, options) {
    this.columns = columns;
    this.rows = rows;
    this.options = options;
    this.order = options.sort === undefined ? null : { column: options.sort, sign: -1 };
    this.texts = rows.map((row) => options.search(row).toLowerCase());
    this.body = el("tbody");
    this.found = el("span", "soft");
    this.found.setAttribute("aria-live", "polite");
    this.more = el("button", "", "Show more");
    this.more.addEventListener("click", () => this.draw());
    this.element = el("div", "", this.tools(), this.table(), this.more);
    this.watch = new IntersectionObserver(
      (seen) => seen.some((one) => one.isIntersecting) && this.draw(),
      { rootMargin: "300px" },
    );
    this.watch.observe(this.more);
    matchMedia("(max-width: 720px)").addEventListener("change", () => this.span());
    this.refresh();
  }

  tools() {
    this.search = el("input");
    this.search.type = "search";
    this.search.placeholder = this.options.label;
    this.search.setAttribute("aria-label", this.options.label);
    this.search.addEventListener("input", () => this.refresh());
    return el("div", "tools", this.search, this.found);
  }

  table() {
    this.heads = this.columns.map((column, index) => {
      const press = el("button", "", column.name);
      press.type = "button";
      press.title = column.about || column.name;
      press.addEventListener("click", () => this.sortBy(index));
      const head = el("th", classes(column), press);
      head.scope = "col";
      if (column.width) head.style.width = column.width;
      return head;
    });
    return el("table", "", el("thead", "", el("tr", "", ...this.heads)), this.body);
  }

  sortBy(index) {
    const again = this.order && this.order.column === index;
    const first = this.columns[index].number ? -1 : 1;
    this.order = { column: index, sign: again ? -this.order.sign : first };
    this.refresh();
  }

  /** Search and sort anew, and draw the first rows. */
  refresh() {
    const words = this.search.value.toLowerCase().split(/\s+/).filter(Boolean);
    const kept = this.rows.filter((_, at) => words.every((word) => this.texts[at].includes(word)));
    if (this.order) {
      const { column, sign } = this.order;
      const value = this.columns[column].of;
      kept.sort((a, b) => compare(value(a), value(b), sign));
    }
    this.heads.forEach((head, index) => {
      const sorted = this.order && this.order.column === index;
      head.setAttribute("aria-sort", sorted ? (this.order.sign > 0 ? "ascending" : "descending") : "none");
    });
    this.kept = kept;
    this.drawn = 0;
    this.body.replaceChildren();
    this.found.textContent =
      kept.length === this.rows.length
        ? format.plural(kept.length, this.options.noun)
        : `${format.count(kept.length)} of ${format.plural(this.rows.length, this.options.noun)}`;
    this.draw();
  }

  draw() {
    const next = this.kept.slice(this.drawn, this.drawn + LazyTable.CHUNK);
    this.drawn += next.length;
    this.body.append(...next.map((row) => this.row(row)));
    this.more.hidden = this.drawn >= this.kept.length;
  }

  row(row) {
    const cells = this.columns.map((column) => {
      const shown = column.show ? column.show(row) : column.of(row);
      return el("td", classes(column), shown instanceof Node ? shown : said(shown));
    });
    const made = el("tr", this.options.open ? "opens" : "", ...cells);
    if (this.options.open) {
      const press = el("button", "", ...cells[0].childNodes);
      press.type = "button";
      press.setAttribute("aria-expanded", "false");
      cells[0].replaceChildren(press);
      made.addEventListener("click", () => this.toggle(row, made, press));
    }
    return made;
  }

  toggle(row, made, press) {
    const next = made.nextElementSibling;
    const open = next !== null && next.classList.contains("detail");
    press.setAttribute("aria-expanded", String(!open));
    if (open) {
      next.remove();
      return;
    }
    const cell = el("td", "", this.options.open(row));
    made.after(el("tr", "detail", cell));
    this.span();
  }

  /** Let what is opened be as wide as the columns that are drawn: one more would make room for itself. */
  span() {
    const drawn = this.heads.filter((head) => getComputedStyle(head).display !== "none").length;
    for (const cell of this.body.querySelectorAll("tr.detail > td")) cell.colSpan = drawn;
  }

  /** Show one row and what is below it: what is searched for gives way. */
  reveal(row) {
    this.search.value = "";
    this.refresh();
    const at = this.kept.indexOf(row);
    if (at < 0) return;
    while (this.drawn <= at) this.draw();
    const made = [...this.body.children].filter((one) => !one.classList.contains("detail"))[at];
    this.toggle(row, made, made.querySelector("button"));
    made.scrollIntoView({ block: "start" });
  }
}

function classes(column) {
  return [column.number ? "number" : "", column.spare ? "spare" : ""].filter(Boolean).join(" ");
}

/** Compare two values; those that are not there come last whichever way is sorted. */
function compare(a, b, sign) {
  const none = (one) => one === null || one === undefined;
  if (none(a) || none(b)) return Number(none(a)) - Number(none(b));
  if (typeof a === "number" && typeof b === "number") return sign * (a - b);
  return sign * String(a).localeCompare(String(b), "en", { numeric: true });
}

function reportData() {
  return JSON.parse(document.getElementById("data").textContent);
}
