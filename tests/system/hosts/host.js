// A Host on Node's own HTTP parser: answers each whole request, and writes a line for it to the file that it was given.
"use strict";
const fs = require("fs");
const http = require("http");

const [, , log] = process.argv;
const server = http.createServer((request, response) => {
  let length = 0;
  request.on("data", (data) => (length += data.length));
  request.on("error", () => {});
  request.on("end", () => {
    const seen = { method: request.method, target: request.url, length };
    fs.appendFileSync(log, JSON.stringify(seen) + "\n");
    response.end(JSON.stringify(seen));
  });
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
