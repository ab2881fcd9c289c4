// Loaded before anything is drawn, so that a chosen theme never flashes in the other one's colours.
(() => {
  const root = document.documentElement;
  const choose = (theme) => {
    if (theme === "light" || theme === "dark") root.dataset.theme = theme;
    else delete root.dataset.theme;
  };
  choose(localStorage.getItem("keel-theme"));
  window.keelTheme = {
    get dark() {
      const system = matchMedia("(prefers-color-scheme: dark)").matches;
      return root.dataset.theme ? root.dataset.theme === "dark" : system;
    },
    toggle() {
      const theme = this.dark ? "light" : "dark";
      localStorage.setItem("keel-theme", theme);
      choose(theme);
    },
  };
})();
