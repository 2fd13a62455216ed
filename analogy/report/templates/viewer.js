{ // Two images of a pair: side by side, in turn, or their difference.
  const TURN = 800; // milliseconds
  const viewer = document.getElementById("viewer");
  const [first, second, view] = viewer.querySelectorAll("select");
  const [left, right] = viewer.querySelectorAll("img");
  const stage = viewer.querySelector(".stage");
  const full = viewer.querySelector("a");
  let shots = [];
  let timer;

  const show = (image, number) => {
    const from = shots[number].querySelector("img");
    image.src = from.src;
    image.alt = from.alt;
    image.className = from.className;
  };
  const draw = () => {
    show(left, first.value);
    show(right, second.value);
    stage.dataset.view = view.value;
    delete stage.dataset.turn;
    clearInterval(timer);
    if (view.value === "flicker") timer = setInterval(() => stage.toggleAttribute("data-turn"), TURN);
    const href = shots[second.value].getAttribute("href");
    full.hidden = !href;
    if (href) full.href = href;
  };
  document.addEventListener("click", (event) => {
    const shot = event.target.closest(".shot");
    if (!shot) return;
    event.preventDefault();
    shots = [...shot.closest("[data-shots]").querySelectorAll(".shot")];
    for (const select of [first, second]) {
      select.replaceChildren(...shots.map((one, i) => new Option(one.querySelector("img").alt, i)));
    }
    const chosen = shots.indexOf(shot);
    const row = shots.indexOf(shot.closest("tr").querySelector(".shot"));
    first.value = row === chosen && shots.length > 1 ? (row + 1) % shots.length : row;
    second.value = chosen;
    draw();
    viewer.showModal();
  });
  for (const select of [first, second, view]) select.addEventListener("input", draw);
  viewer.querySelector("button").addEventListener("click", () => viewer.close());
  viewer.addEventListener("close", () => clearInterval(timer));
}
