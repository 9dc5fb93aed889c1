// Makes tables sortable by a click on a column's head, and searchable. No network, no library; without it they stay plain tables.
(() => {
  "use strict";
  const order = new Intl.Collator("en", { numeric: true, sensitivity: "base" });
  const fold = (text) => text.toLowerCase().normalize("NFD").replace(/[\u0300-\u036f]/g, "");
  const number = /^\s*[-+]?(\d|\.\d)/;

  const liven = (box) => {
    const body = box.querySelector("tbody");
    const rows = [...body.rows];
    const texts = rows.map((row) => [...row.cells].map((cell) => cell.textContent.trim()));
    const whole = texts.map((cells) => fold(cells.join(" ")));
    const heads = [...box.querySelectorAll("thead th")];

    const sort = (column, down) => {
      const key = texts.map((cells) => cells[column]);
      const numeric = key.every((text) => !text || number.test(text));
      const compare = numeric ? (a, b) => parseFloat(a) - parseFloat(b) : order.compare;
      const at = rows.map((_, i) => i).sort((a, b) => {
        if (!key[a] || !key[b]) return (key[a] ? 0 : 1) - (key[b] ? 0 : 1) || a - b; // what is empty stays last
        return (down ? -1 : 1) * compare(key[a], key[b]) || a - b;
      });
      body.append(...at.map((i) => rows[i]));
      heads.forEach((head, i) => {
        if (i === column) head.setAttribute("aria-sort", down ? "descending" : "ascending");
        else head.removeAttribute("aria-sort");
      });
    };
    heads.forEach((head, column) => {
      const button = document.createElement("button");
      button.type = "button";
      button.append(...head.childNodes);
      head.append(button);
      button.addEventListener("click", () => sort(column, head.getAttribute("aria-sort") === "ascending"));
    });

    const tools = box.querySelector(".lst-tools");
    const input = tools.querySelector("input");
    const count = tools.querySelector("output");
    const search = () => {
      const words = fold(input.value).split(/\s+/).filter(Boolean);
      const hits = whole.map((text) => words.every((word) => text.includes(word)));
      rows.forEach((row, i) => (row.hidden = !hits[i]));
      const n = hits.filter(Boolean).length;
      count.textContent = words.length ? `${n} of ${rows.length} rows` : `${rows.length} rows`;
    };
    input.addEventListener("input", search);
    for (const event of ["keydown", "keyup", "keypress"]) {
      input.addEventListener(event, (e) => e.stopPropagation()); // letters are for the search, not for the page
    }
    tools.hidden = false;
    search();
    box.dataset.ready = "";
  };

  const all = () => document.querySelectorAll(".lst:not([data-ready])").forEach(liven);
  all();
  requestAnimationFrame(all); // a notebook runs the script before the table is in its page
})();
