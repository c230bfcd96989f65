// The search of a site opened from disk: browsers start no worker from a file, but let one import it.
if (location.protocol === "file:") {
  window.Worker = class extends Worker {
    constructor(url) {
      const code = `importScripts(${JSON.stringify(new URL(url, location.href).href)})`
      super(URL.createObjectURL(new Blob([code], {type: "text/javascript"})))
    }
  }
}
