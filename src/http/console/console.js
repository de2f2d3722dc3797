// Asks for the page again every ten seconds and puts the new numbers in place of the old. Without it the page is complete as it is.
(() => {
  const live = document.getElementById('live');
  const state = document.getElementById('state');
  const button = document.getElementById('pause');
  let paused = false;

  // Who is reading, or is somewhere with the keyboard, is to find all as it was.
  const isSelecting = () => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && live.contains(selection.anchorNode);
  };
  const replace = (fresh) => {
    const opened = [...live.querySelectorAll('details[open]')].map((one) => one.id);
    const focused = live.contains(document.activeElement) ? document.activeElement.id : '';
    live.replaceChildren(...fresh.childNodes);
    for (const id of opened) document.getElementById(id)?.setAttribute('open', '');
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  };
  const tell = (text) => {
    if (state.textContent !== text) state.textContent = text;
  };
  const refresh = async () => {
    if (paused || document.hidden || isSelecting()) return;
    try {
      const answer = await fetch(location.href, { cache: 'no-store' });
      if (!answer.ok) throw new Error(answer.status);
      const fresh = new DOMParser().parseFromString(await answer.text(), 'text/html').getElementById('live');
      if (paused || isSelecting()) return;
      replace(fresh);
      tell('');
    } catch {
      tell('Not up to date: the service did not answer. Trying again.');
    }
  };

  button.hidden = false;
  button.addEventListener('click', () => {
    paused = !paused;
    button.textContent = paused ? 'Resume updates' : 'Pause updates';
    tell(paused ? 'Updates are paused.' : '');
    refresh();
  });
  setInterval(refresh, 10000);
})();
