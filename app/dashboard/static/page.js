// On every page: times in the reader's zone, copy buttons, and lists that stay up to date while they are looked at.

const zoned = new Intl.DateTimeFormat(undefined, { dateStyle: "medium", timeStyle: "medium" });

export function localTimes(root = document) {
  for (const time of root.querySelectorAll("time[datetime]")) {
    time.title = time.dateTime;
    time.textContent = zoned.format(new Date(time.dateTime));
  }
}

let live = true;
export const isLive = () => live && !document.hidden;

function toggleLive(button) {
  live = !live;
  button.setAttribute("aria-pressed", live);
  document.dispatchEvent(new Event("known:live"));
}

async function copy(button) {
  const element = document.getElementById(button.dataset.copy);
  const text = element.dataset.text ?? element.textContent;
  try {
    await navigator.clipboard.writeText(text);
  } catch { // plain http, or not allowed: mark it for Ctrl-C
    getSelection().selectAllChildren(element);
  }
  const before = button.textContent;
  button.textContent = "Copied";
  setTimeout(() => { button.textContent = before; }, 1500);
}

document.addEventListener("click", (event) => {
  const button = event.target.closest("button");
  if (button?.dataset.copy) copy(button);
  if (button?.hasAttribute("data-live-toggle")) toggleLive(button);
});
document.addEventListener("htmx:config:request", (event) => {
  const polls = event.detail.ctx.sourceElement.getAttribute("hx-trigger")?.startsWith("every");
  if (polls && !isLive()) event.preventDefault();
});
document.addEventListener("htmx:after:swap", () => localTimes());
localTimes();
