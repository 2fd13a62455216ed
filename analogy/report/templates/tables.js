{ // Tables: sorted by a click, saved as they stand.
  const value = (cell) => cell.dataset.value ?? cell.textContent;
  const compare = (a, b) => {
    if (a === "" || b === "") return (a === "") - (b === "");
    const [x, y] = [Number(a), Number(b)];
    return Number.isNaN(x) || Number.isNaN(y) ? a.localeCompare(b) : x - y;
  };
  for (const button of document.querySelectorAll(".figures th button")) {
    const head = button.closest("th");
    button.addEventListener("click", () => {
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
}
