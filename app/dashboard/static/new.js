// A new job: its files go up as they are chosen, its inputs are checked, and then it is started.
import { call, element, Problem, showProblem } from "./api.js";
import { duration, size, words } from "./format.js";
import { requestOf } from "./request.js";
import { Uploads } from "./uploads.js";

const MOST_PARTS = 24; // of a list of counts

const form = document.getElementById("new");
const at = (id) => document.getElementById(id);
const uploads = new Uploads(form, forget);
let checked = null; // the request that was checked, and the key under which it is one job however often it is sent

function forget() { // what was checked is not what the form says now
  checked = null;
  at("start").hidden = true;
  at("understood").hidden = true;
  at("check").classList.add("primary");
}

function headers() {
  const token = at("f-token").value.trim();
  return token ? { "X-Hub-Token": token } : {};
}

async function busy(what, work) {
  for (const mark of form.querySelectorAll("[aria-invalid]")) mark.removeAttribute("aria-invalid");
  for (const note of form.querySelectorAll(".wrong")) note.remove();
  at("problem").replaceChildren();
  at("busy").textContent = what;
  at("check").disabled = at("start").disabled = true;
  try {
    await work();
  } catch (problem) {
    if (!(problem instanceof Problem)) throw problem;
    explain(problem);
  } finally {
    at("busy").textContent = "";
    at("check").disabled = at("start").disabled = false;
  }
}

function explain(problem) {
  showProblem(at("problem"), problem);
  let first = null;
  for (const { pointer, message } of problem.fields) {
    const place = fieldOf(pointer);
    if (!place) continue;
    const input = place.querySelector("input, select, textarea");
    input?.setAttribute("aria-invalid", "true");
    const note = element("p", "wrong", message);
    place.append(note);
    place.closest("details")?.setAttribute("open", "");
    first ??= input;
  }
  (first?.checkVisibility() ? first : at("problem")).scrollIntoView({ block: "center" });
  if (first?.checkVisibility()) first.focus();
}

function fieldOf(pointer) { // the field, or the nearest one around it that is shown
  for (let path = pointer; path; path = path.slice(0, path.lastIndexOf("/"))) {
    for (const name of [path, `${path}/upload_id`, `${path}/hub/repo_id`]) {
      const found = form.querySelector(`[data-field="${CSS.escape(name)}"]`);
      if (found?.checkVisibility() || found?.closest("details")) return found;
    }
  }
  return null;
}

const newKey = () => [...crypto.getRandomValues(new Uint8Array(16))].map((byte) => byte.toString(16).padStart(2, "0")).join("");

function check() {
  if (uploads.unfinished) {
    at("busy").textContent = "An upload is not complete yet.";
    return;
  }
  busy("Checking the inputs…", async () => {
    const request = requestOf(form, uploads.ids);
    const answer = await call("POST", "/v1/enhance?dry_run=true", { body: request, headers: headers() });
    checked = { request, key: newKey() };
    show(answer, request);
  });
}

function start() {
  busy("Starting the job…", async () => {
    const job = await call("POST", "/v1/enhance", {
      body: checked.request, headers: { ...headers(), "Idempotency-Key": checked.key },
    });
    location.assign(`/jobs/${job.id}`);
  });
}

const NO_ESTIMATE = {
  no_calibration: "There is no estimate: no worker has calibrated its device yet.",
  model_not_counted: "There is no estimate: this network cannot be counted without running it.",
  inputs_not_sampled: "There is no estimate: the data could not be looked at.",
};

function show({ resolved, estimate, no_estimate: none }, request) {
  at("estimate").replaceChildren(estimate ? facts(estimateFacts(estimate)) : element("p", "muted", NO_ESTIMATE[none] ?? ""));
  at("resolved").replaceChildren(facts(resolved));
  const text = JSON.stringify(request, null, 2);
  const key = "withKey" in form.dataset ? '-H "Authorization: Bearer $KNOWN_API_KEY" ' : "";
  at("curl").firstChild.textContent = `curl -sS ${key}-H 'Content-Type: application/json' \\
  ${location.origin}/v1/enhance -d '${text.replaceAll("'", "'\\''")}'`;
  at("python").firstChild.textContent = `import json\n\nfrom known_core.client import Client

request = json.loads(r"""${text}""")
print(Client("${location.origin}").enhance(request)["id"])`;
  at("understood").hidden = at("start").hidden = false;
  at("check").classList.remove("primary");
  at("start").classList.add("primary");
  at("understood-title").focus();
}

function estimateFacts({ seconds, gpu_memory_bytes: gpu, memory_bytes: memory, disk_bytes: disk, basis }) {
  const range = (value, how) => value && `${how(value.expected)} (${how(value.low)} to ${how(value.high)})`;
  return {
    time: range(seconds, duration), "GPU memory": range(gpu, size), memory: range(memory, size), disk: range(disk, size),
    "known from": basis,
  };
}

function facts(values) { // templates/parts.html does the same
  const list = element("dl", "facts");
  for (const [name, value] of Object.entries(values)) {
    if (value === null || (typeof value === "object" && !Object.keys(value).length)) continue;
    const isTree = typeof value === "object" && !Array.isArray(value);
    const shown = !isTree ? [one(value)] : Object.values(value).some((part) => part && typeof part === "object")
      ? [facts(value)] : parts(value);
    list.append(element("div", "", element("dt", "", words(name)), element("dd", "", ...shown)));
  }
  return list;
}

function parts(values) {
  const known = Object.entries(values).filter(([, value]) => value !== null);
  const shown = known.slice(0, MOST_PARTS).map(([name, value]) => element("span", "part", element("span", "muted", name), ` ${one(value)}`));
  if (known.length > MOST_PARTS) shown.push(element("span", "muted", `and ${known.length - MOST_PARTS} more`));
  return shown;
}

const one = (value) => (Array.isArray(value) ? value.join(", ") : typeof value === "number" ? value.toLocaleString("en") : String(value));

async function offer() { // what this service can do: it knows some seconds after its start
  const abilities = await call("GET", "/v1/capabilities").catch(() => ({}));
  for (const select of form.querySelectorAll("[data-able]")) {
    for (const name of abilities[select.dataset.able] ?? []) select.append(new Option(name));
  }
}

form.addEventListener("submit", (event) => { event.preventDefault(); check(); });
form.addEventListener("input", forget);
at("start").addEventListener("click", start);
offer();
