// A job, live: the server draws what it is, this moves its bar and its curves, and asks before anything is done to it.
import { call, Problem, showProblem } from "./api.js";
import { ForgettingChart, LossChart } from "./charts.js";
import { duration, words } from "./format.js";
import { isLive } from "./page.js";

const main = document.getElementById("main");
const id = main.dataset.job;
const base = `/v1/jobs/${id}`;
const ENDED = ["succeeded", "failed", "canceled"];
const STATES = 4; // of a trajectory, beside the weights given
const REFRESH_MS = 1000; // at most one page a second
const AGAIN_MS = 5000; // after an answer that closed the stream

const loss = new LossChart(document.getElementById("loss"), document.getElementById("loss-key"));
const forgetting = new ForgettingChart(document.getElementById("forgetting"));

// ---- the page, asked for again when something but a number has changed

let refreshedAt = 0;
let refreshing = null;
function refresh() {
  refreshing ??= setTimeout(() => {
    refreshing = null;
    refreshedAt = Date.now();
    htmx.trigger("#main", "refresh");
  }, Math.max(50, refreshedAt + REFRESH_MS - Date.now()));
}
document.addEventListener("htmx:before:swap", () => {
  const log = document.getElementById("log");
  if (log) log.dataset.kept = log.scrollTop + log.clientHeight >= log.scrollHeight - 4 ? "end" : "";
});
document.addEventListener("htmx:after:swap", () => {
  const log = document.getElementById("log");
  if (log?.dataset.kept === "end") log.scrollTop = log.scrollHeight;
  if ("republishing" in main.dataset) setTimeout(refresh, AGAIN_MS); // no stream tells of it: the job has ended
});

// ---- events: all of them, for the curves; those that the page was not yet drawn with change it

let stage = "";
let last = "0"; // id of the last event
let over = false; // nothing follows
let source = null;

const takes = {
  phase({ phase, detail }, isNew) {
    stage = phase === "forgetting" ? `stage ${detail}` : "";
    if (isNew) setNow(`${words(phase)} ${detail}`.trim(), 0, 1, null);
    if (isNew) refresh();
  },
  progress({ phase, step, total, eta_seconds: left, loss: value }, isNew) {
    if (stage && typeof value === "number") loss.add(stage, step, value);
    if (isNew) setNow(`${words(phase)} ${stage}`.trim(), step, total, left);
  },
  metric({ name, value, state, candidate, phase }, isNew) {
    if (name === "accuracy" && state <= STATES) forgetting.add(state, value); // jobs of before 2026-11-27 number controls on
    if (name === "accuracy" && candidate === "unchanged" && phase === "evaluating_before") forgetting.add(0, value);
    if (isNew) refresh();
  },
  status({ status }, isNew) {
    over = ENDED.includes(status);
    if (isNew) refresh();
  },
  republish: (_, isNew) => isNew && refresh(),
  pause: (_, isNew) => isNew && refresh(),
  out_of_memory: (_, isNew) => isNew && refresh(),
};

function isAfter(one, other) { // ids are milliseconds, a hyphen, a number
  const [[ms, count], [otherMs, otherCount]] = [one, other].map((id) => `${id}-0`.split("-").map(Number));
  return ms > otherMs || (ms === otherMs && count > otherCount);
}

function setNow(what, step, total, left) {
  const bar = document.getElementById("now-bar");
  if (!bar) return;
  bar.max = Math.max(total, 1);
  bar.value = step;
  document.getElementById("now-what").textContent = what;
  document.getElementById("now-left").textContent = typeof left === "number" ? `${duration(left)} left` : "";
}

function listen() {
  if (source || over || !isLive()) return;
  source = new EventSource(`${base}/events?after=${last}`);
  for (const [type, take] of Object.entries(takes)) {
    source.addEventListener(type, (event) => {
      last = event.lastEventId;
      take(JSON.parse(event.data), isAfter(last, main.dataset.seen));
    });
  }
  source.onerror = () => { // the browser connects again by itself, unless the answer was no stream
    if (!over && source.readyState !== EventSource.CLOSED) return;
    stopListening();
    if (over) return;
    refresh(); // which leads to the login, where the session is over
    setTimeout(listen, AGAIN_MS);
  };
}

function stopListening() {
  source?.close();
  source = null;
}

function followOrNot() {
  if (!isLive()) { stopListening(); return; }
  if (!over) refresh();
  listen();
}
document.addEventListener("known:live", followOrNot);
document.addEventListener("visibilitychange", followOrNot);

// ---- actions

const QUESTIONS = {
  cancel: ["Cancel this job?", "It stops within seconds and cannot be resumed. What it has finished is not delivered.", "Cancel the job"],
  pause: ["Pause this job?", "Its worker is free within seconds; what is finished is kept.", "Pause"],
  resume: ["Go on with this job?", "It is queued again, and goes on after its last finished stage.", "Resume"],
  delete: ["Delete this job?", "Its record, events, log and files are removed for ever. What is on the Hub stays there.", "Delete for ever"],
  republish: ["Put the result on the Hub?", "The files of this job are published as they are.", "Publish"],
};
const dialog = document.getElementById("confirm");
const field = (name) => document.getElementById(name);
let asked = null;

document.addEventListener("click", (event) => {
  const button = event.target.closest("[data-ask]");
  if (!button) return;
  asked = button.dataset.ask;
  const [title, what, yes] = QUESTIONS[asked];
  field("confirm-title").textContent = title;
  field("confirm-what").textContent = what;
  field("confirm-yes").textContent = yes;
  field("confirm-yes").className = ["cancel", "delete"].includes(asked) ? "danger" : "primary";
  field("confirm-problem").replaceChildren();
  field("republish-fields").hidden = asked !== "republish";
  dialog.showModal();
});
field("confirm-no").addEventListener("click", () => dialog.close());

dialog.querySelector("form").addEventListener("submit", async (event) => {
  event.preventDefault();
  try {
    await act(asked);
    dialog.close();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    showProblem(field("confirm-problem"), problem);
  }
});

async function act(action) {
  if (action === "delete") {
    await call("DELETE", base);
    location.assign("/");
  } else if (action === "republish") {
    await call("POST", `${base}/republish`, republishing());
    refresh();
  } else {
    await call("POST", `${base}/${action}`);
    refresh();
  }
}

function republishing() {
  const repo = field("republish-repo").value.trim();
  const token = field("republish-token").value.trim();
  const body = {};
  if (repo) body.hub = { repo_id: repo, private: field("republish-private").checked, create_pr: field("republish-pr").checked };
  if (field("republish-candidate").value) body.candidate = field("republish-candidate").value;
  return { body, headers: token ? { "X-Hub-Token": token } : {} };
}

listen();
