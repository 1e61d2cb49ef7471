// Links into folded parts open them. Printing opens every section but those of pictures and folds them again.
"use strict";
(function () {
  function reveal(id) {
    const target = id && document.getElementById(id);
    if (!target) return;
    const inside = target.matches(".part") ? target.querySelector("details") : target;
    for (let e = inside; e; e = e.parentElement) if (e.tagName === "DETAILS") e.open = true;
    target.scrollIntoView();
  }
  addEventListener("hashchange", () => reveal(decodeURIComponent(location.hash.slice(1))));
  document.addEventListener("click", function (event) {
    const link = event.target.closest("a[href^='#']");
    if (link && link.hash === location.hash) reveal(decodeURIComponent(link.hash.slice(1)));  // no hashchange then
  });
  if (location.hash) reveal(decodeURIComponent(location.hash.slice(1)));

  // what scrolls can be reached and scrolled by keyboard
  function reachable() {
    document.querySelectorAll(".scroll").forEach(function (e) {
      if (e.scrollWidth > e.clientWidth + 1 || e.scrollHeight > e.clientHeight + 1) e.tabIndex = 0;
      else e.removeAttribute("tabindex");
    });
  }
  addEventListener("resize", reachable);
  document.addEventListener("toggle", reachable, true);
  reachable();

  // the part in sight is marked in the contents
  const links = new Map([...document.querySelectorAll("nav.contents a")].map((a) => [a.hash.slice(1), a]));
  function mark() {
    let current = "answer";
    for (const part of document.querySelectorAll(".part")) if (part.getBoundingClientRect().top < 120) current = part.id;
    links.forEach((a, id) => { if (id === current) a.setAttribute("aria-current", "true"); else a.removeAttribute("aria-current"); });
  }
  addEventListener("scroll", mark, { passive: true });
  mark();

  let opened = [];
  addEventListener("beforeprint", function () {
    opened = [...document.querySelectorAll(".part > details:not([open])")].filter((e) => !e.querySelector(".open"));
    opened.forEach((e) => { e.open = true; });
  });
  addEventListener("afterprint", function () { opened.forEach((e) => { e.open = false; }); });
})();
