// What scrolls sideways can be reached with the keyboard. Pages are whole without this.
const WIDE = "pre, .cell_output .output, .table-wrapper, div.math, .katex-display, .sidebar-scroll, .toc-scroll";
function reach() {
  for (const box of document.querySelectorAll(WIDE)) {
    if (box.scrollWidth > box.clientWidth || box.scrollHeight > box.clientHeight) box.tabIndex = 0;
  }
}
addEventListener("load", reach);
addEventListener("resize", reach);
