// Loads the page again every ten seconds and replaces the numbers. Without this script the page is complete, but static.
(() => {
  const live = document.getElementById('live');
  const state = document.getElementById('state');
  const button = document.getElementById('pause');
  let paused = false;

  // A refresh keeps the user's selection, opened details and keyboard focus.
  const isSelecting = () => {
    const selection = document.getSelection();
    return selection && !selection.isCollapsed && live.contains(selection.anchorNode);
  };
  const replace = (fresh) => {
    const opened = [...live.querySelectorAll('details[open]')].map((details) => details.id);
    const focused = live.contains(document.activeElement) ? document.activeElement.id : '';
    live.replaceChildren(...fresh.childNodes);
    for (const id of opened) document.getElementById(id)?.setAttribute('open', '');
    if (focused) document.getElementById(focused)?.focus({ preventScroll: true });
  };
  const showState = (text) => {
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
      showState('');
    } catch {
      showState('Not up to date: the service did not answer. Trying again.');
    }
  };

  button.hidden = false;
  button.addEventListener('click', () => {
    paused = !paused;
    button.textContent = paused ? 'Resume updates' : 'Pause updates';
    showState(paused ? 'Updates are paused.' : '');
    refresh();
  });
  setInterval(refresh, 10000);
})();
