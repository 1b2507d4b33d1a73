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

// What goes on in the background: its progress is shown, and the page loaded anew at its end.
document.addEventListener("DOMContentLoaded", () => {
  for (const shown of document.querySelectorAll("[data-progress]")) {
    const look = async () => {
      try {
        const answer = await fetch(shown.dataset.progress);
        const progress = await answer.json();
        if (progress.over) return location.reload();
        shown.textContent = progress.words;
      } catch { /* away for a moment: asked again */ }
      setTimeout(look, 1500);
    };
    setTimeout(look, 1500);
  }
});
