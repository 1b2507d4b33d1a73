// Buttons that copy a text. Where the page is not on https or localhost, browsers have no clipboard: then it is selected.
document.addEventListener("click", async (event) => {
  const button = event.target.closest("[data-copy]");
  if (!button) return;
  try {
    await navigator.clipboard.writeText(button.dataset.copy);
    const label = button.textContent;
    button.textContent = "Copied";
    setTimeout(() => { button.textContent = label; }, 1500);
  } catch {
    const shown = button.parentElement.querySelector("code, pre");
    if (shown) getSelection().selectAllChildren(shown);
  }
});
