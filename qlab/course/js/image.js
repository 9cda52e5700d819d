const percent = (number) => `${100 * number}%`;

/** Where a photograph lies on an image, and which part of the image it shows. */
export function layOver(part, [left, top, width, height], address) {
  const shift = (start, size) => percent(size < 1 ? start / (1 - size) : 0);
  Object.assign(part.style, {
    left: percent(left), top: percent(top), width: percent(width), height: percent(height),
    backgroundImage: `url(${address})`, backgroundSize: `${percent(1 / width)} ${percent(1 / height)}`,
    backgroundPosition: `${shift(left, width)} ${shift(top, height)}`,
  });
}

/** A JPEG, and what it shows in words. Its photographs lie over it once more: in the dark they stay as they are. */
function render({ model, el }) {
  const image = document.createElement("img");
  const addresses = [];
  const show = () => {
    addresses.push(URL.createObjectURL(new Blob([model.get("value")], { type: "image/jpeg" })));
    image.src = addresses.at(-1);
  };
  const loaded = () => {
    while (addresses.length > 1) URL.revokeObjectURL(addresses.shift());
    const photos = model.get("photos");
    while (el.children.length > 1 + photos.length) el.lastChild.remove();
    while (el.children.length < 1 + photos.length) el.append(document.createElement("span"));
    photos.forEach((photo, place) => layOver(el.children[1 + place], photo, addresses[0]));
  };
  const name = () => (image.alt = model.get("alt"));
  image.addEventListener("load", loaded);
  model.on("change:value", show);
  model.on("change:alt", name);
  name();
  show();
  el.classList.add("qlab-image");
  el.append(image);
  return () => {
    model.off("change:value", show);
    model.off("change:alt", name);
    addresses.forEach((address) => URL.revokeObjectURL(address));
  };
}

export default { render };
