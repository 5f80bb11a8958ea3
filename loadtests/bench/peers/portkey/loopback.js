// Portkey's gateway listens on every interface and has no option for it. Preloaded by the bench (`node -r`), this binds
// whatever listens without a host to loopback.
const net = require("node:net");
const listen = net.Server.prototype.listen;
net.Server.prototype.listen = function (...words) {
  if (typeof words[0] === "object" && words[0] !== null && words[0].path === undefined) {
    words[0] = { ...words[0], host: "127.0.0.1" };
  } else if (typeof words[0] === "number") {
    const rest = typeof words[1] === "string" ? words.slice(2) : words.slice(1);
    words = [words[0], "127.0.0.1", ...rest.filter((word) => word !== undefined)];
  }
  return listen.apply(this, words);
};
