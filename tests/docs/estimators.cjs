// Reads a JSON list of [name, arguments] from stdin, calls the explorer's functions and writes their results.
const api = require(process.argv[2]);
const calls = JSON.parse(require("fs").readFileSync(0, "utf8"));
const plain = (key, value) => (ArrayBuffer.isView(value) ? Array.from(value) : value);
process.stdout.write(JSON.stringify(calls.map(([name, args]) => api[name](...args)), plain));
