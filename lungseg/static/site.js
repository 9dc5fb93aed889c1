// The little that pages need beyond HTML: theme, menu, contents, copy buttons, search. Everything works from file://.
(() => {
  "use strict";
  const root = document.documentElement;
  const one = (selector, from = document) => from.querySelector(selector);
  const all = (selector, from = document) => [...from.querySelectorAll(selector)];
  const make = (tag, properties = {}, ...children) => {
    const element = Object.assign(document.createElement(tag), properties);
    element.append(...children);
    return element;
  };

  // theme: what the reader chose, else what the system says
  const dark = matchMedia("(prefers-color-scheme: dark)");
  one(".theme").addEventListener("click", () => {
    const now = root.dataset.theme || (dark.matches ? "dark" : "light");
    root.dataset.theme = now === "dark" ? "light" : "dark";
    try {
      localStorage.setItem("lungseg-theme", root.dataset.theme);
    } catch {
      // storage may be closed; the choice then lasts for this page
    }
  });

  // menu on a phone
  const menu = one(".menu");
  const open = (yes) => {
    document.body.classList.toggle("menu-open", yes);
    menu.setAttribute("aria-expanded", String(yes));
  };
  menu.addEventListener("click", (event) => {
    event.stopPropagation();
    open(!document.body.classList.contains("menu-open"));
  });
  one("main").addEventListener("click", () => open(false));
  const here = one(".sidebar [aria-current]");
  if (here) {
    const bar = one(".sidebar");
    bar.scrollTop = Math.max(0, here.offsetTop - bar.clientHeight / 2);
  }

  // headings one can link to; the list of what is on the page follows the reader
  const headings = all("article :is(h2, h3, h4)[id]");
  for (const heading of headings) {
    const anchor = make("a", { className: "anchor", href: `#${heading.id}`, textContent: "#" });
    anchor.setAttribute("aria-label", "Link to this section");
    heading.append(anchor);
  }
  const entries = new Map(all(".toc a").map((a) => [decodeURIComponent(a.hash.slice(1)), a]));
  const follow = () => {
    let now = null;
    for (const heading of headings) {
      if (!entries.has(heading.id)) continue;
      if (heading.getBoundingClientRect().top > innerHeight * 0.3) break;
      now = entries.get(heading.id);
    }
    for (const a of entries.values()) a.classList.toggle("here", a === now);
  };
  let waiting = false;
  addEventListener("scroll", () => {
    if (waiting) return;
    waiting = true;
    requestAnimationFrame(() => {
      waiting = false;
      follow();
    });
  }, { passive: true });
  follow();

  // copy a code block
  for (const block of all("div.sourceCode")) {
    const button = make("button", { className: "copy", type: "button", textContent: "Copy" });
    button.addEventListener("click", async () => {
      try {
        await navigator.clipboard.writeText(one("code", block).innerText);
        button.textContent = "Copied";
      } catch {
        getSelection().selectAllChildren(one("code", block));
        button.textContent = "Selected";
      }
      setTimeout(() => (button.textContent = "Copy"), 1500);
    });
    block.append(button);
  }

  // search: every word must occur; a hit in a title or heading counts more than one in the text
  const input = one(".search input");
  const list = one("#hits");
  let chosen = -1;
  const fold = (text) => text.toLowerCase().normalize("NFD").replace(/[\u0300-\u036f]/g, "");
  const index = (window.SEARCH || []).map((row) => ({ ...row, p_: fold(row.p), h_: fold(row.h), t_: fold(row.t) }));
  const count = (text, word) => text.split(word).length - 1;
  const score = (row, words) => {
    let total = 0;
    for (const word of words) {
      const found = 12 * count(row.h_, word) + 8 * count(row.p_, word) + Math.min(count(row.t_, word), 6);
      if (!found) return 0;
      total += found + (row.h_ === word ? 20 : 0);
    }
    return total;
  };
  const marked = (text, words) => {
    const pattern = new RegExp(`(${words.map((w) => w.replace(/[.*+?^${}()|[\]\\]/g, "\\$&")).join("|")})`, "gi");
    return text.split(pattern).map((part, i) => (i % 2 ? make("mark", { textContent: part }) : part));
  };
  const excerpt = (row, words) => {
    const at = Math.max(0, Math.min(...words.map((w) => row.t_.indexOf(w)).filter((i) => i >= 0), row.t.length) - 50);
    return (at && at < row.t.length ? "… " : "") + row.t.slice(at < row.t.length ? at : 0).slice(0, 150);
  };
  const show = () => {
    const words = fold(input.value).split(/\s+/).filter(Boolean);
    list.replaceChildren();
    chosen = -1;
    list.hidden = !words.length;
    input.setAttribute("aria-expanded", String(!list.hidden));
    input.removeAttribute("aria-activedescendant");
    if (!words.length) return;
    const hits = index.map((row) => [score(row, words), row]).filter(([s]) => s).sort((a, b) => b[0] - a[0]).slice(0, 12);
    hits.forEach(([, row], i) => {
      const head = make("div", {}, make("b", {}, ...marked(row.h, words)), " ");
      if (row.h !== row.p) head.append(make("small", { textContent: row.p }));
      const link = make("a", { href: `${root.dataset.up}/${row.u}`, tabIndex: -1 }, head);
      link.append(make("p", {}, ...marked(excerpt(row, words), words)));
      const item = make("li", { id: `hit-${i}` }, link);
      item.setAttribute("role", "option");
      list.append(item);
    });
    if (!hits.length) list.append(make("li", { className: "none", textContent: "Nothing found." }));
  };
  const choose = (step) => {
    const items = all("[role=option]", list);
    if (!items.length) return;
    chosen = (chosen + step + items.length + (chosen < 0 && step < 0 ? 1 : 0)) % items.length;
    items.forEach((item, i) => item.setAttribute("aria-selected", String(i === chosen)));
    items[chosen].scrollIntoView({ block: "nearest" });
    input.setAttribute("aria-activedescendant", items[chosen].id);
  };
  const leave = () => {
    list.hidden = true;
    input.setAttribute("aria-expanded", "false");
  };
  input.addEventListener("input", show);
  input.addEventListener("focus", show);
  input.addEventListener("keydown", (event) => {
    if (event.key === "ArrowDown" || event.key === "ArrowUp") {
      event.preventDefault();
      choose(event.key === "ArrowDown" ? 1 : -1);
    } else if (event.key === "Enter") {
      const link = one("[aria-selected=true] a", list) || one("[role=option] a", list);
      if (link) link.click();
    } else if (event.key === "Escape") {
      leave();
      input.blur();
    }
  });
  list.addEventListener("click", leave);
  document.addEventListener("click", (event) => {
    if (!one(".search").contains(event.target)) leave();
  });
  document.addEventListener("keydown", (event) => {
    const typing = event.target.closest && event.target.closest("input, textarea, select, [contenteditable], [tabindex]");
    if (event.key === "/" && !typing && !event.ctrlKey && !event.metaKey && !event.altKey) {
      event.preventDefault();
      input.focus();
    } else if (event.key === "Escape") {
      open(false);
    }
  });
  root.dataset.ready = "site";
})();
