"use strict";
(() => {
  const form = document.getElementById("filters");
  const place = document.getElementById("strips");
  const strips = [...place.children];

  // Images: a strip's are in the page when the strip is near the window, and only then.
  const build = (strip) => {
    const at = strip.querySelector(".place");
    if (at && !at.firstChild) at.append(strip.querySelector("template").content.cloneNode(true));
  };
  const clear = (strip) => {
    strip.querySelector(".place")?.replaceChildren();
  };
  const near = new IntersectionObserver((entries) => {
    for (const { isIntersecting, target } of entries) (isIntersecting ? build : clear)(target);
  }, { rootMargin: "900px" });
  strips.forEach((strip) => near.observe(strip));
  addEventListener("beforeprint", () => [...place.children].filter((s) => !s.hidden).slice(0, 12).forEach(build));

  // Filters and order, by the item at the chosen alpha.
  const item = (strip, alpha) => [...strip.querySelectorAll(".item")].find((one) => one.dataset.alpha === alpha);
  const show = () => {
    const { category, alpha, verdict, sign, word, order } = Object.fromEntries(new FormData(form));
    const sought = word.trim().toLowerCase();
    const rows = strips.map((strip) => {
      const at = item(strip, alpha);
      const margin = at.dataset.margin === undefined ? NaN : Number(at.dataset.margin);
      const side = margin > 0 ? "pos" : margin <= 0 ? "neg" : "none";
      strip.hidden = (category && strip.dataset.category !== category)
        || (verdict && at.dataset.verdict !== verdict)
        || (sign && side !== sign)
        || !strip.dataset.words.includes(sought);
      return { strip, margin };
    });
    if (order) {
      const turn = order === "best" ? -1 : 1;
      rows.sort((a, b) => Number.isNaN(a.margin) - Number.isNaN(b.margin) || turn * (a.margin - b.margin) || 0);
    }
    place.append(...[...rows].sort((a, b) => a.strip.hidden - b.strip.hidden).map((row) => row.strip));
    const shown = strips.filter((strip) => !strip.hidden).length;
    document.getElementById("count").textContent = `${shown} of ${strips.length} pairs`;
    document.getElementById("nothing").hidden = shown > 0;
  };
  form.addEventListener("input", show);
  form.addEventListener("submit", (event) => event.preventDefault());

  // Links to pairs, and the arrow keys from one to the next.
  const linked = () => strips.find((strip) => "#" + strip.id === location.hash);
  const go = (strip) => {
    build(strip);
    strip.scrollIntoView({ block: "start", behavior: "instant" });
    strip.focus({ preventScroll: true });
  };
  const follow = () => {
    const strip = linked();
    if (!strip) return;
    if (strip.hidden) { form.reset(); show(); }
    go(strip);
  };
  addEventListener("hashchange", follow);
  addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const isPlain = !event.ctrlKey && !event.altKey && !event.metaKey && !event.shiftKey;
    if (!step || !isPlain || event.target.closest("input, select, .scroll")) return;
    const shown = [...place.children].filter((strip) => !strip.hidden);
    const here = shown.indexOf(document.activeElement.closest(".strip") || linked());
    const next = shown[here < 0 ? 0 : here + step];
    if (!next) return;
    event.preventDefault();
    history.replaceState(null, "", "#" + next.id);
    go(next);
  });

  // Tables: sorted by a click, saved as they stand.
  const value = (cell) => cell.dataset.value ?? cell.textContent;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  for (const head of document.querySelectorAll(".figures th")) {
    head.querySelector("button").addEventListener("click", () => {
      const body = head.closest("table").tBodies[0];
      const turn = head.getAttribute("aria-sort") === "ascending" ? -1 : 1;
      for (const other of head.parentNode.children) other.removeAttribute("aria-sort");
      head.setAttribute("aria-sort", turn > 0 ? "ascending" : "descending");
      const of = (row) => value(row.cells[head.cellIndex]);
      body.append(...[...body.rows].sort((a, b) => {
        const isOpen = of(a) === "" || of(b) === "";
        return isOpen ? compare(of(a), of(b)) : turn * compare(of(a), of(b));
      }));
    });
  }
  const field = (text) => {
    const isNumber = text !== "" && !Number.isNaN(Number(text));
    const safe = !isNumber && /^[=+\-@\t\r]/.test(text) ? "'" + text : text; // no formula in a spreadsheet
    return /[",\n\r]/.test(safe) ? '"' + safe.replaceAll('"', '""') + '"' : safe;
  };
  for (const button of document.querySelectorAll(".csv")) {
    button.addEventListener("click", () => {
      const table = document.getElementById(button.dataset.table);
      const heads = [...table.tHead.rows[0].cells].map((cell) => field(cell.textContent));
      const rows = [...table.tBodies[0].rows].map((row) => [...row.cells].map((cell) => field(value(cell))));
      const text = [heads, ...rows].map((row) => row.join(",") + "\r\n").join("");
      const link = document.createElement("a");
      link.href = URL.createObjectURL(new Blob([text], { type: "text/csv" }));
      link.download = button.dataset.file;
      link.click();
      URL.revokeObjectURL(link.href);
    });
  }

  show();
  follow();
})();
