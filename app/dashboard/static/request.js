// The form as a request: every field is named by the JSON pointer of what it sets.

const PARSED = {
  text: (field) => field.value.trim(),
  choice: (field) => field.value,
  number: (field) => (Number.isFinite(Number(field.value)) ? Number(field.value) : field.value),
  numbers: (field) => field.value.split(",").filter((part) => part.trim()).map(Number),
  maybe: (field) => field.value === "true",
  json: (field) => {
    try { return JSON.parse(field.value); } catch { return field.value; } // the API says what is wrong with it
  },
};

function set(request, pointer, value) {
  const parts = pointer.split("/").slice(1);
  let place = request;
  parts.forEach((part, index) => {
    if (index === parts.length - 1) place[part] = value;
    else place = place[part] ??= /^\d+$/.test(parts[index + 1]) ? [] : {};
  });
}

const isShown = (field) => field.closest(".only-data, .only-trajectory")?.checkVisibility() ?? true;

export function requestOf(form, uploads) {
  const request = {};
  for (const source of form.querySelectorAll("[data-source]")) {
    const pointer = source.dataset.source;
    const kind = source.querySelector(".choices input:checked").value;
    if (kind !== "none" && isShown(source) && (kind === "hub" || uploads.has(pointer))) {
      set(request, pointer, kind === "hub" ? { hub: {} } : { upload_id: uploads.get(pointer) });
    }
  }
  const several = {};
  for (const field of form.querySelectorAll("[name^='/']")) {
    const source = field.closest("[data-source]");
    const kind = source?.querySelector(".choices input:checked").value;
    if (!isShown(field) || kind === "none" || ("hub" in field.dataset && kind !== "hub")) continue;
    if (field.dataset.kind === "several") {
      const group = (several[field.name] ??= { chosen: [], changed: false });
      if (field.checked) group.chosen.push(field.value);
      group.changed ||= field.checked !== field.defaultChecked;
    } else if (field.dataset.kind === "flag") {
      if (field.checked !== field.defaultChecked) set(request, field.name, field.checked);
    } else if (field.value.trim() !== "") {
      set(request, field.name, PARSED[field.dataset.kind](field));
    }
  }
  for (const [pointer, { chosen, changed }] of Object.entries(several)) if (changed) set(request, pointer, chosen);
  return request;
}
