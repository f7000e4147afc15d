// A file sent with tus as soon as it is chosen: it can be paused, and goes on where it was after a reload or a cut.
import { size } from "./format.js";

const ENDPOINT = "/v1/uploads";
const RETRY_MS = [500, 1000, 2000, 4000, 8000, 15000];

export class Uploads {
  // Ids of complete uploads, by the pointer of the input that they are for.
  constructor(form, changed) {
    this.ids = new Map();
    this.changed = changed;
    for (const input of form.querySelectorAll("[data-upload]")) {
      input.addEventListener("change", () => this.take(input));
    }
  }

  get unfinished() {
    return [...document.querySelectorAll(".upload-line[data-sending]")].some((line) => line.checkVisibility());
  }

  async take(input) {
    const pointer = input.dataset.upload;
    const line = input.parentElement.querySelector(".upload-line");
    const [bar, said, pause] = ["progress", "output", "button"].map((name) => line.querySelector(name));
    line.upload?.abort();
    this.ids.delete(pointer);
    this.changed();
    const [file] = input.files;
    line.hidden = !file;
    delete line.dataset.sending;
    if (!file) return;
    const upload = new tus.Upload(file, {
      endpoint: ENDPOINT,
      retryDelays: RETRY_MS,
      metadata: { filename: file.name },
      removeFingerprintOnSuccess: true,
      onShouldRetry: (error) => ![401, 403, 413, 422].includes(error.originalResponse?.getStatus()),
      onProgress: (sent, total) => {
        bar.value = total ? sent / total : 0;
        said.value = `${size(sent)} of ${size(total)}`;
      },
      onSuccess: () => {
        this.ids.set(pointer, upload.url.split("/").pop());
        delete line.dataset.sending;
        bar.value = 1;
        pause.hidden = true;
        said.value = `${size(file.size)}, complete`;
        this.changed();
      },
      onError: (error) => {
        pause.textContent = "Try again";
        delete line.dataset.sending;
        said.value = whatWentWrong(error);
      },
    });
    line.upload = upload;
    const start = async () => {
      pause.hidden = false;
      pause.textContent = "Pause";
      line.dataset.sending = "";
      said.value = "";
      const [before] = await upload.findPreviousUploads();
      if (before && !upload.url) upload.resumeFromPreviousUpload(before);
      upload.start();
    };
    pause.onclick = () => {
      if (pause.textContent !== "Pause") { start(); return; }
      upload.abort();
      pause.textContent = "Resume";
    };
    await start();
  }
}

function whatWentWrong(error) {
  try {
    const problem = JSON.parse(error.originalResponse.getBody());
    return `${problem.detail} (${problem.code}). ${problem.hint}`;
  } catch {
    return "The upload was cut off; it goes on where it was.";
  }
}
