(() => {
  const data = JSON.parse(document.getElementById("data").textContent);
  const rows = [...document.querySelectorAll("#rows tr")];
  const texts = rows.map((row) => row.textContent.toLowerCase());
  const find = document.getElementById("find");
  const field = find.querySelector("input");
  const status = find.querySelector("[role=status]");
  find.hidden = false;
  const search = () => {
    const asked = field.value.toLowerCase().split(/\s+/).filter(Boolean);
    let shown = 0;
    rows.forEach((row, i) => {
      row.hidden = !asked.every((word) => texts[i].includes(word));
      shown += !row.hidden;
    });
    status.textContent = asked.length ? `${shown} of ${rows.length}` : "";
  };
  field.addEventListener("input", search);
  search();

  const two = document.getElementById("two");
  const said = two.querySelector("p");
  const boxes = [...document.querySelectorAll("#rows input")];
  let chosen = [];
  const say = () => {
    two.hidden = chosen.length === 0;
    said.replaceChildren();
    if (chosen.length === 1) said.textContent = "Choose another run to compare with this one.";
    if (chosen.length < 2) return;
    const [i, j] = [...chosen].sort((a, b) => a - b);
    const outcome = data.outcomes[j][i];
    if (outcome === -1) {
      const link = document.createElement("a");
      link.href = `compare/${data.ids[i]}--${data.ids[j]}.html`;
      link.textContent = "Compare the two runs";
      said.append(link);
    } else if (outcome === -2) {
      said.textContent = `Comparable, but without a page: this site has ${data.most} comparisons at most. "analogy compare" compares the two.`;
    } else {
      said.textContent = `Not comparable. ${data.reasons[outcome]}.`;
    }
  };
  for (const box of boxes) {
    box.hidden = false;
    box.checked = false;
    box.addEventListener("change", () => {
      const run = Number(box.value);
      chosen = chosen.filter((one) => one !== run);
      if (box.checked) chosen.push(run);
      if (chosen.length > 2) boxes[chosen.shift()].checked = false;
      say();
    });
  }
})();
