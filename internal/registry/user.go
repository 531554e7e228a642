package registry

import (
	"context"
	"fmt"
	"strings"

	"pairsync/internal/moment"
	"pairsync/internal/token"
)

// SeeUser remembers the name and e-mail address of a verified token. Empty
// ones leave what was seen earlier; nothing new costs no write.
func (r *Registry) SeeUser(ctx context.Context, id, name, email string) error {
	if err := moment.CheckID("user", id); err != nil {
		return fmt.Errorf("see user: %w", err)
	}
	name, email = token.CleanName(name), token.CleanName(email)
	if _, news := r.seen(id, name, email); !news {
		return nil
	}
	if err := r.lock(ctx); err != nil {
		return fmt.Errorf("see user %q: %w", id, err)
	}
	defer r.unlock()
	u, news := r.seen(id, name, email)
	if !news {
		return nil
	}
	op, err := u.op()
	if err != nil {
		return fmt.Errorf("see user: %w", err)
	}
	if err := r.commit(ctx, func() { r.users[id] = u }, Change{Kind: UserSeen, User: id}, op); err != nil {
		return fmt.Errorf("see user %q: %w", id, err)
	}
	return nil
}

// seen returns the user's record with what is new, and whether anything is.
func (r *Registry) seen(id, name, email string) (u userRecord, news bool) {
	r.mu.RLock()
	defer r.mu.RUnlock()
	u = r.users[id]
	before := u
	if name != "" {
		u.Name = name
	}
	if email != "" {
		u.Email = email
	}
	news = u != before
	u.ID = id
	return u, news
}

// Name returns the name to show for user: the one last seen, else the id. It
// never equals the partner's name or id, whatever the case of the letters:
// the app takes a partner with its own name for itself and drops the pair,
// so two people of one name go by their ids.
func (r *Registry) Name(user string) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	name := r.users[user].Name
	if name == "" {
		return user
	}
	if partner, ok := r.partner(user); ok {
		if strings.EqualFold(name, partner) || strings.EqualFold(name, r.users[partner].Name) {
			return user
		}
	}
	return name
}

// Email returns the address last seen for user, or nothing where none was or
// the partner has the same.
func (r *Registry) Email(user string) string {
	r.mu.RLock()
	defer r.mu.RUnlock()
	email := r.users[user].Email
	if partner, ok := r.partner(user); ok && strings.EqualFold(email, r.users[partner].Email) {
		return ""
	}
	return email
}

// partner needs mu.
func (r *Registry) partner(user string) (string, bool) {
	id, ok := r.pairOf[user]
	if !ok {
		return "", false
	}
	return r.pairs[id].pair().Partner(user)
}
