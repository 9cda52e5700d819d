/** A JPEG, and what it shows in words. */
function render({ model, el }) {
  const image = document.createElement("img");
  let address;
  const show = () => {
    URL.revokeObjectURL(address);
    address = URL.createObjectURL(new Blob([model.get("value")], { type: "image/jpeg" }));
    image.src = address;
  };
  const name = () => (image.alt = model.get("alt"));
  model.on("change:value", show);
  model.on("change:alt", name);
  name();
  show();
  el.classList.add("qlab-image");
  el.append(image);
  return () => {
    model.off("change:value", show);
    model.off("change:alt", name);
    URL.revokeObjectURL(address);
  };
}

export default { render };
