// The API, asked as any client asks it; its problems, shown as it says them.

export class Problem extends Error {
  constructor(problem) {
    super(problem.detail ?? "the service did not answer");
    this.code = problem.code ?? "server_unreachable";
    this.hint = problem.hint ?? "Check the connection, and try again.";
    this.fields = problem.errors ?? [];
    this.requestId = problem.request_id;
  }
}

export async function call(method, path, { body, headers = {} } = {}) {
  let answer;
  try {
    answer = await fetch(path, {
      method,
      headers: { ...(body === undefined ? {} : { "Content-Type": "application/json" }), ...headers },
      body: body === undefined ? undefined : JSON.stringify(body),
    });
  } catch {
    throw new Problem({});
  }
  if (answer.status === 401) location.assign(`/login?next=${encodeURIComponent(location.pathname)}`);
  if (!answer.ok) throw new Problem(await answer.json().catch(() => ({ detail: `the service answered ${answer.status}` })));
  return answer.status === 204 ? null : answer.json();
}

export function element(tag, className, ...children) {
  const made = document.createElement(tag);
  if (className) made.className = className;
  made.append(...children);
  return made;
}

export function showProblem(place, problem) {
  const code = element("p", "muted", "Code ", element("code", "", problem.code));
  if (problem.requestId) code.append(", request ", element("code", "", problem.requestId));
  const box = element("div", "problem", element("p", "what", element("strong", "", problem.message)));
  if (problem.hint) box.append(element("p", "", problem.hint));
  box.append(code);
  box.setAttribute("role", "alert");
  place.replaceChildren(box);
}
