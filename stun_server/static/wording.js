/** Times, addresses and sums in words. */

/** How long ago: "just now", "12 s ago", "2 min 5 s ago". */
export function ago(ms) {
  return ms < 1000 ? "just now" : `${span(ms)} ago`;
}

/** Until then: "in 12 s", or "now". */
export function until(ms) {
  return ms < 1000 ? "now" : `in ${span(ms)}`;
}

export function span(ms) {
  const seconds = Math.floor(ms / 1000);
  if (seconds < 60) return `${seconds} s`;
  const minutes = Math.floor(seconds / 60);
  if (minutes < 60) return `${minutes} min ${seconds % 60} s`;
  const hours = Math.floor(minutes / 60);
  if (hours < 24) return `${hours} h ${minutes % 60} min`;
  return `${Math.floor(hours / 24)} d ${hours % 24} h`;
}

export function endpoint(address, port) {
  return address.includes(":") ? `[${address}]:${port}` : `${address}:${port}`;
}

export function counted(count, one, many = `${one}s`) {
  return `${count} ${count === 1 ? one : many}`;
}

/** "3 instances, all live", "3 instances, 1 late", "No instances". */
export function sumOf(instances) {
  const late = instances.filter((each) => each.state !== "live").length;
  if (instances.length === 0) return "No instances";
  const sum = counted(instances.length, "instance");
  if (instances.length === 1) return `${sum}, ${late ? "late" : "live"}`;
  if (late === 0) return `${sum}, all live`;
  return late === instances.length ? `${sum}, all late` : `${sum}, ${late} late`;
}
