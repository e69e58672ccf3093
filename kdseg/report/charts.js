/* Draws every chart of the page from the specification behind it. The buttons of a group hide a model in all of its
   charts. Expressions are interpreted, so that the page can forbid `eval`; a chart without points is no fault to warn of. */
const options = { renderer: "svg", actions: false, ast: true, defaultStyle: false, logLevel: 1, tooltip: { theme: "custom" },
  config: JSON.parse(document.getElementById("chart-config").textContent) };
for (const group of document.querySelectorAll(".charts")) {
  const made = [...group.querySelectorAll(".chart")].map(place =>
    vegaEmbed(place, JSON.parse(place.parentElement.nextElementSibling.textContent), options));
  const buttons = [...group.querySelectorAll("button[data-hides]")];
  for (const button of buttons) button.addEventListener("click", async () => {
    button.setAttribute("aria-pressed", button.getAttribute("aria-pressed") !== "true");
    const hidden = buttons.filter(b => b.getAttribute("aria-pressed") !== "true").map(b => b.dataset.hides);
    for (const { view } of await Promise.all(made)) view.signal("hidden", hidden).runAsync();
  });
}
