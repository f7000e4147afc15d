// Before anything is painted: the theme that was chosen here last. Else the system's.
(() => {
  const root = document.documentElement;
  const system = matchMedia("(prefers-color-scheme: dark)");
  const chosen = () => {
    try { return localStorage.getItem("known-theme"); } catch { return null; } // storage may be forbidden
  };
  const isDark = () => (chosen() ?? (system.matches ? "dark" : "light")) === "dark";
  const apply = () => {
    if (chosen()) root.dataset.theme = chosen();
    for (const button of document.querySelectorAll("[data-theme-toggle]")) {
      button.setAttribute("aria-pressed", isDark());
    }
    document.dispatchEvent(new Event("known:theme"));
  };
  root.classList.add("js");
  apply();
  addEventListener("DOMContentLoaded", apply);
  system.addEventListener("change", apply);
  addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-toggle]")) return;
    try { localStorage.setItem("known-theme", isDark() ? "light" : "dark"); } catch { return; }
    apply();
  });
})();
