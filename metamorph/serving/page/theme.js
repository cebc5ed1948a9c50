// Runs before anything is shown, so that the colours chosen last time do not flash.
"use strict";

(() => {
  const system = matchMedia("(prefers-color-scheme: dark)");
  const root = document.documentElement;
  const isDark = () => (root.dataset.theme ? root.dataset.theme === "dark" : system.matches);
  const chosen = localStorage.getItem("metamorph.theme");
  if (chosen) root.dataset.theme = chosen;

  addEventListener("DOMContentLoaded", () => {
    const dark = document.getElementById("dark");
    const show = () => dark.setAttribute("aria-checked", String(isDark()));
    dark.addEventListener("click", () => {
      root.dataset.theme = isDark() ? "light" : "dark";
      localStorage.setItem("metamorph.theme", root.dataset.theme);
      show();
    });
    system.addEventListener("change", show);
    show();
  });
})();
