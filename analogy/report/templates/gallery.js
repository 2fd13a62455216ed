{ // The gallery: one page of the pairs that match the filters, in order. The address holds both.
  const PAGE = 12; // pairs
  const gallery = document.getElementById("gallery");
  const form = document.getElementById("filters");
  const place = document.getElementById("strips");
  const pager = document.getElementById("pager");
  const strips = [...place.children];
  form.reset(); // some browsers keep a form's state when the page is loaded again
  const defaults = Object.fromEntries(new FormData(form));
  let found = strips;
  let page = 0;

  // The images of a pair are text until the pair is first shown, and elements of the page then.
  const build = (strip) => {
    const text = strip.querySelector("noscript");
    if (!text) return;
    const template = document.createElement("template");
    template.innerHTML = text.textContent;
    text.replaceWith(template.content);
  };
  const draw = () => {
    const pages = Math.max(Math.ceil(found.length / PAGE), 1);
    page = Math.min(Math.max(page, 0), pages - 1);
    const shown = found.slice(page * PAGE, (page + 1) * PAGE);
    shown.forEach(build);
    place.replaceChildren(...shown);
    pager.hidden = pages === 1;
    pager.querySelector("span").textContent = `Page ${page + 1} of ${pages}`;
    pager.querySelector("[data-step='-1']").disabled = page === 0;
    pager.querySelector("[data-step='1']").disabled = page === pages - 1;
  };

  // Filters and order, by the item at the chosen alpha.
  const item = (strip, alpha) => [...strip.querySelectorAll(".item")].find((one) => one.dataset.alpha === alpha);
  const ORDERS = {
    best: (margin) => -margin,
    worst: (margin) => margin,
    median: (margin, median) => Math.abs(margin - median),
  };
  const filter = () => {
    const { category, alpha, verdict, sign, word, order } = Object.fromEntries(new FormData(form));
    const sought = word.trim().toLowerCase();
    const rows = [];
    for (const strip of strips) {
      const at = item(strip, alpha);
      const margin = at.dataset.margin === undefined ? NaN : Number(at.dataset.margin);
      const side = margin > 0 ? "pos" : margin <= 0 ? "neg" : "none";
      const matches = (!category || strip.dataset.category === category)
        && (!verdict || at.dataset.verdict === verdict)
        && (!sign || side === sign)
        && strip.dataset.words.includes(sought);
      if (matches) rows.push({ strip, margin });
    }
    if (order) {
      const margins = rows.map((row) => row.margin).filter((margin) => !Number.isNaN(margin)).sort((a, b) => a - b);
      const median = margins[Math.floor((margins.length - 1) / 2)];
      const rank = (row) => ORDERS[order](row.margin, median);
      rows.sort((a, b) => Number.isNaN(a.margin) - Number.isNaN(b.margin) || rank(a) - rank(b) || 0);
    }
    found = rows.map((row) => row.strip);
    document.getElementById("count").textContent = `${found.length} of ${strips.length} pairs`;
    document.getElementById("nothing").hidden = found.length > 0;
  };
  const show = (at) => {
    filter();
    page = at;
    draw();
  };

  // The address: #gallery?category=...&page=2, or #pair-... of one pair.
  const keep = () => {
    const chosen = [...new FormData(form)].filter(([name, value]) => value !== defaults[name]);
    if (page) chosen.push(["page", page + 1]);
    const query = new URLSearchParams(chosen).toString();
    history.replaceState(null, "", query ? "#gallery?" + query : "#gallery");
  };
  const choose = (query) => {
    form.reset();
    for (const [name, value] of new URLSearchParams(query)) {
      const control = form.elements[name];
      if (!control) continue;
      control.value = value;
      if (control.selectedIndex === -1) control.value = defaults[name]; // no such option
    }
  };
  const go = (strip) => {
    page = Math.floor(found.indexOf(strip) / PAGE);
    draw();
    strip.scrollIntoView({ block: "start", behavior: "instant" });
    strip.focus({ preventScroll: true });
  };
  const follow = () => {
    const [start, query] = location.hash.split("?", 2);
    const strip = strips.find((one) => "#" + one.id === location.hash);
    if (strip) {
      if (!found.includes(strip)) { form.reset(); show(0); }
      go(strip);
    } else if (start === "#gallery" && query !== undefined) {
      choose(query);
      show(Number(new URLSearchParams(query).get("page") || 1) - 1);
      gallery.scrollIntoView({ behavior: "instant" });
      gallery.querySelector("h2").focus({ preventScroll: true });
    }
  };
  form.addEventListener("input", () => { show(0); keep(); });
  form.addEventListener("submit", (event) => event.preventDefault());
  pager.addEventListener("click", (event) => {
    const step = Number(event.target.dataset.step);
    if (!step) return;
    page += step;
    draw();
    keep();
    form.scrollIntoView({ block: "start", behavior: "instant" });
  });
  addEventListener("hashchange", follow);
  document.addEventListener("click", (event) => { // the address does not change if the same link is used again
    if (event.target.closest("a")?.hash && event.target.closest("a").hash === location.hash) follow();
  });
  addEventListener("keydown", (event) => {
    const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
    const isPlain = !event.ctrlKey && !event.altKey && !event.metaKey && !event.shiftKey;
    if (!step || !isPlain || event.target.closest("input, select, .scroll, dialog")) return;
    const here = document.activeElement.closest(".strip") || strips.find((one) => "#" + one.id === location.hash);
    const at = found.indexOf(here);
    const next = found[at < 0 ? page * PAGE : at + step];
    if (!next) return;
    event.preventDefault();
    history.replaceState(null, "", "#" + next.id);
    go(next);
  });

  show(0);
  follow();
}
