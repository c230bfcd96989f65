// The search of a site opened from disk: browsers start no worker from a file; a frame takes its place.
if (location.protocol === "file:") {
  window.Worker = class extends EventTarget {
    constructor(url) {
      super()
      const frame = document.createElement("iframe")
      frame.hidden = true
      frame.srcdoc = `<script src="${new URL(url, location.href)}"></script>`
      this.scope = new Promise(ready => frame.onload = () => {
        const scope = frame.contentWindow
        scope.postMessage = data => this.dispatchEvent(new MessageEvent("message", {data}))
        ready(scope)
      })
      document.body.append(frame)
    }
    async postMessage(data) {
      (await this.scope).dispatchEvent(new MessageEvent("message", {data}))
    }
  }
}
